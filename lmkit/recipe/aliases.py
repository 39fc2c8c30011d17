"""What other tools call the keys of a recipe, so that a person who writes their names is told ours."""

from collections.abc import Collection
from typing import Any

# The names in other tools, and what stands for them here: the first whose key the recipe has. {} is the value.
_ALIASES = {
    "learning_rate lr peak_lr max_lr": ("optimizer.lr={}",),
    "weight_decay wd": ("optimizer.weight_decay={}",),
    "optim optimizer_type optimizer_name": ("optimizer.name={}",),
    "lr_scheduler lr_scheduler_type scheduler": ("schedule.name={}",),
    "warmup warmup_steps warmup_ratio num_warmup_steps warmup_iters": ("schedule.warmup={}",),
    "batch_size per_device_train_batch_size train_batch_size global_batch_size": ("train.batch='{} rows'",),
    "epochs epoch num_epochs n_epochs max_epochs num_train_epochs": ("train.budget='{} epochs'",),
    "steps max_steps num_steps train_steps total_steps max_iters": ("train.budget='{} steps'",),
    "max_grad_norm grad_clip gradient_clipping clip_grad": ("train.clip={}",),
    "gradient_checkpointing activation_checkpointing": ("train.recompute={}",),
    "seed random_seed": ("train.seed={}",),
    "precision dtype torch_dtype": ("train.precision={}",),
    "early_stopping_patience patience": ("train.patience={}",),
    "num_layers n_layer n_layers num_hidden_layers layers": ("model.num_layers={}",),
    "hidden_size n_embd d_model hidden_dim": ("model.hidden_size={}",),
    "num_heads n_head n_heads num_attention_heads": ("model.num_heads={}",),
    "num_key_value_heads n_kv_heads n_kv_head": ("model.num_kv_heads={}",),
    "intermediate_size d_ff ffn_dim n_inner": ("model.intermediate_size={}",),
    "max_length max_seq_length max_seq_len seq_length sequence_length cutoff_len block_size context_length": (
        "data.max_length={}", "model.context={}",
    ),
    "vocab_size": ("tokenizer.vocab_size={}",),
    "lora_r lora_rank": ("lora.rank={}",),
    "lora_alpha": ("lora.alpha={}",),
    "lora_dropout": ("lora.dropout={}",),
    "eval_steps eval_every eval_interval": ("evaluate.every={}",),
    "save_steps save_every save_interval": ("checkpoint.every={}",),
    "save_total_limit": ("checkpoint.keep={}",),
    "text_column": ("data.text={}",),
    "label_column": ("data.label={}",),
    "train_file train_data train_files dataset": ("data.train={}",),
    "validation_file val_data valid_data eval_file": ("data.validation={}",),
    "output_dir out_dir save_dir": ("--out {}",),
}  # fmt: skip
_TEMPLATES = {name: templates for names, templates in _ALIASES.items() for name in names.split()}


def key_for(key: str, value: Any, known: Collection[str]) -> str | None:
    """Returns how to write an unknown `key` of another tool with its value, or None where it is none.

    known: the keys that the recipe has."""
    templates = _TEMPLATES.get(key.rpartition(".")[2].lower(), ())
    fitting = (t for t in templates if t.startswith("--") or t.partition("=")[0] in known)
    template = next(fitting, None)
    return None if template is None else template.format(value)
