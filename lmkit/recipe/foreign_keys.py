"""The settings of axolotl, LLaMA-Factory and transformers' Trainer, and what stands for each in a recipe: tables alone.

A setting that goes by several names is called as in transformers' TrainingArguments and example scripts, or else as in
LLaMA-Factory."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Ours(NamedTuple):
    key: str  # of the recipe
    read: Callable[[Any], Any] = lambda value: value  # raises ValueError that says why a value has no counterpart


def _one_of(table: dict[str, str]) -> Callable[[Any], str]:
    """Returns what looks a value up. table: our value -> theirs, by blanks."""
    ours = {name: key for key, names in table.items() for name in names.split()}

    def read(value: Any) -> str:
        if str(value).lower() not in ours:
            raise ValueError(f"lmkit has {', '.join(table)}")
        return ours[str(value).lower()]

    return read


def _share(value: Any) -> float:
    if float(value) > 1:
        raise ValueError("a share is held out, as data.validation=5%, or files of their own")
    return float(value)


def _targets(value: Any) -> list[str]:
    """Returns patterns of our layers. One matrix of ours holds queries, keys and values."""
    names = value.split(",") if isinstance(value, str) else list(value)
    if any(name.strip() in ("all", "all-linear") for name in names):
        return ["attention|cross", "mlp"]
    return list(dict.fromkeys(_layer(name.strip()) for name in names))


_layer = _one_of({
    "attention.qkv": "q_proj k_proj v_proj qkv_proj query key value query_key_value c_attn wqkv w_pack",
    "attention.output": "o_proj out_proj dense wo",
    "mlp.up": "gate_proj up_proj gate_up_proj fc1 c_fc dense_h_to_4h w1 w3 wi",
    "mlp.down": "down_proj fc2 dense_4h_to_h w2",
})  # fmt: skip
_optimizer = _one_of({
    "adamw": "adamw adamw_torch adamw_torch_fused adamw_hf adamw_apex_fused adamw_anyprecision adamw_8bit paged_adamw "
             "adamw_bnb_8bit paged_adamw_8bit paged_adamw_32bit adamw_torch_8bit adamw_torch_4bit",
    "adafactor": "adafactor", "sgd": "sgd", "adagrad": "adagrad", "muon": "muon",
})  # fmt: skip
_schedule = _one_of({
    "linear": "linear", "cosine": "cosine cosine_with_min_lr", "constant": "constant constant_with_warmup",
    "inverse_sqrt": "inverse_sqrt", "wsd": "warmup_stable_decay",
})  # fmt: skip
_metric = _one_of({
    "accuracy": "accuracy eval_accuracy", "macro_f1": "f1 eval_f1 macro_f1 eval_macro_f1", "auroc": "roc_auc",
    "mcc": "matthews_correlation eval_matthews_correlation", "pearson": "pearson eval_pearson", "spearman": "spearmanr",
})  # fmt: skip
_tracker = _one_of({name: name for name in ("wandb", "tensorboard", "mlflow", "trackio", "none")})
_template = _one_of({"auto": "auto default tokenizer_default none", "chatml": "chatml qwen"})


def _first(value: Any) -> str:
    return _tracker(value[0] if isinstance(value, list) else value)


# Theirs -> the name under which the other tables have it.
NAMES = {
    "base_model": "model_name_or_path", "tokenizer_config": "tokenizer_name", "num_epochs": "num_train_epochs",
    "micro_batch_size": "per_device_train_batch_size", "train_batch_size": "per_device_train_batch_size",
    "optimizer": "optim", "lr_scheduler": "lr_scheduler_type", "sequence_len": "cutoff_len",
    "max_seq_length": "cutoff_len", "max_length": "cutoff_len", "block_size": "cutoff_len",
    "max_source_length": "cutoff_len", "lora_r": "lora_rank", "lora_target_modules": "lora_target",
    "peft_use_dora": "use_dora", "lora_use_dora": "use_dora", "val_set_size": "val_size", "chat_template": "template",
    "evaluation_strategy": "eval_strategy", "activation_checkpointing": "gradient_checkpointing",
    "max_train_samples": "max_samples", "no_cuda": "use_cpu", "eval_dataset": "validation_file",
    "val_max_target_length": "max_target_length", "generation_max_length": "max_target_length",
    "adam_eps": "adam_epsilon", "text_column_names": "text_column_name", "bfloat16": "bf16", "float16": "fp16",
    "pure_bf16": "bf16", "use_fast_tokenizer": "tokenizer_use_fast",
}  # fmt: skip

# What each tool does where a file says nothing, as far as lmkit would do something else.
TRAINER = {
    "learning_rate": 5e-5, "lr_scheduler_type": "linear", "warmup_steps": 0, "weight_decay": 0.0, "num_train_epochs": 3,
    "per_device_train_batch_size": 8, "seed": 42,
}  # fmt: skip
DEFAULTS: dict[str, dict[str, Any]] = {
    "transformers": TRAINER,
    "LLaMA-Factory": TRAINER | {"finetuning_type": "lora", "lora_rank": 8, "cutoff_len": 2048, "val_size": 0.0},
    "axolotl": TRAINER
    | {"lr_scheduler_type": "cosine", "num_train_epochs": 1, "per_device_train_batch_size": 1, "val_size": 0.0},
}

RULES = {
    "model_name_or_path": Ours("model", str),
    "learning_rate": Ours("optimizer.lr", float),
    "weight_decay": Ours("optimizer.weight_decay", float),
    "adam_epsilon": Ours("optimizer.eps", float),
    "optim": Ours("optimizer.name", _optimizer),
    "lr_scheduler_type": Ours("schedule.name", _schedule),
    "max_grad_norm": Ours("train.clip", lambda value: float(value) or None),
    "seed": Ours("train.seed", int),
    "gradient_checkpointing": Ours("train.recompute", bool),
    "torch_compile": Ours("train.compile", lambda value: "on" if value else "auto"),
    "use_cpu": Ours("train.device", lambda value: "cpu" if value else "auto"),
    "early_stopping_patience": Ours("train.patience", int),
    "save_total_limit": Ours("checkpoint.keep", int),
    "report_to": Ours("tracker.name", _first),
    "wandb_project": Ours("tracker.project", str),
    "tokenizer_name": Ours("tokenizer.path", str),
    "cutoff_len": Ours("data.max_length", int),
    "max_samples": Ours("data.limit", int),
    "val_size": Ours("data.validation", _share),
    "validation_split_percentage": Ours("data.validation", lambda value: f"{value}%"),
    "validation_file": Ours("data.validation"),
    "text_column_name": Ours("data.text", str),
    "label_column_name": Ours("data.label", str),
    "summary_column": Ours("data.target", str),
    "text_column": Ours("data.text", str),
    "lora_rank": Ours("lora.rank", int),
    "lora_alpha": Ours("lora.alpha", float),
    "lora_dropout": Ours("lora.dropout", float),
    "lora_target": Ours("lora.targets", _targets),
    "use_dora": Ours("lora.dora", bool),
    "merge_lora": Ours("lora.merge", bool),
    "template": Ours("task.template", _template),
    "label_smoothing_factor": Ours("task.label_smoothing", float),
    "num_beams": Ours("task.beam", int),
    "max_target_length": Ours("task.max_new_tokens", int),
    "source_prefix": Ours("task.prompt", lambda value: f"{value}{{source}}"),
    "doc_stride": Ours("task.overlap", int),
    "max_answer_length": Ours("task.max_answer", int),
    "version_2_with_negative": Ours("task.no_answer", bool),
    "metric_for_best_model": Ours("task.metric", _metric),
}

# Why the others are not taken over, or how lmkit says them. A name that ends in * stands for all that begin so.
_WHY = {
    "every step is in metrics.jsonl; `lmkit report RUN` draws it": "logging_* log_* plot_loss include_* disable_tqdm "
    "skip_memory_metrics debug wandb_* mlflow_* use_tensorboard trackio_* project",
    "`lmkit push RUN NAME` uploads": "push_to_hub hub_*",
    "`best` links to the best checkpoint of every run": "load_best_model_at_end greater_is_better",
    "--out names the run directory": "output_dir run_name",
    "--resume RUN goes on with a run": "resume_from_checkpoint auto_resume_from_checkpoints overwrite_output_dir "
    "ignore_data_skip save_only_model restore_callback_states_from_checkpoint",
    "train, evaluate and predict are commands of their own": "do_* predict_with_generate max_eval_samples "
    "eval_on_start max_predict_samples compute_accuracy eval_delay prediction_loss_only eval_do_concat_batches",
    "kernels are chosen by the machine": "flash_attention flash_attn sdp_attention xformers_attention tf32 "
    "full_determinism use_unsloth attn_implementation liger_* use_liger_kernel enable_liger_kernel plugins "
    "torch_compile_* auto_find_batch_size use_cache",
    "weights are trained in full, not quantised": "load_in_8bit load_in_4bit quantization_* bnb_* double_quantization "
    "gptq",
    "`--processes N parallel.data=fsdp` shares the work": "deepspeed fsdp* ddp_* local_rank accelerator_config "
    "average_tokens_across_devices parallelism_config",
    "rows of like length always go together; texts of task lm are packed": "group_by_length length_column_name packing "
    "pad_to_sequence_len pad_to_max_length sample_packing eval_sample_packing train_sampling_strategy neat_packing",
    "memory decides": "per_device_eval_batch_size eval_accumulation_steps eval_batch_size",
    "data are read once and cached": "preprocessing_num_workers dataset_prepared_path overwrite_cache dataloader_* "
    "dataset_processes streaming remove_unused_columns dataset_num_proc",
    "chat learns what the assistant says": "train_on_inputs train_on_prompt mask_history roles_to_train train_on_eos",
    "no code out of model folders runs; config.json says what a model is": "trust_remote_code model_type "
    "tokenizer_type tokenizer_use_fast model_revision is_llama_derived_model is_mistral_derived_model "
    "torch_dtype strict",
    "the tokenizer stays that of the model": "special_tokens tokens resize_vocab add_special_tokens "
    "resize_token_embeddings_to_32x",
    "adapters, and a head for labels, are all that trains": "lora_modules_to_save modules_to_save lora_fan_in_fan_out "
    "lora_target_linear additional_target peft_layers_to_transform",
    "lmkit learns without it": "neftune_* use_rslora peft_use_rslora loraplus_* use_galore use_badam optim_args "
    "optim_target_modules torch_empty_cache_steps",
}  # fmt: skip
_REASONS = {name: reason for reason, names in _WHY.items() for name in names.split()}


def reason_of(name: str) -> str:
    """Returns why a setting is not taken over."""
    if name in _REASONS:
        return _REASONS[name]
    starts = {key.removesuffix("*"): reason for key, reason in _REASONS.items() if key.endswith("*")}
    return next((reason for start, reason in starts.items() if name.startswith(start)), "no counterpart that is known")


# Settings that tell what a Trainer's script learns.
TELLING = {
    "mlm_probability": "lm", "line_by_line": "lm", "block_size": "lm", "doc_stride": "qa",
    "summary_column": "summarize", "version_2_with_negative": "qa", "source_lang": "translate",
    "return_entity_level_metrics": "tag", "text_column_name": "tag",
    "task_name": "classify", "label_column_name": "classify",
}  # fmt: skip
