"""Adapters compute what PEFT computes, in both directions, and a folder with one is a model."""

import json

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import lmkit
from lmkit.base.errors import ModelError
from lmkit.model.formats.peft import adapter_writer, load_adapter
from lmkit.model.lora import adapter_tensors, adapters, add_lora, merge_lora, trainable
from lmkit.recipe.tasks import LoraConfig
from tests.model.adapting import SMALL, adapted, close, logits, merging, shake, their_logits
from tests.model.families import SEQ2SEQ, auto_class, inputs, ours, reference

CASES = [
    ("bert", "sequence"), ("bert", "lm"), ("roberta", "sequence"), ("albert", "token"), ("modernbert", "sequence"),
    ("gpt2", "lm"), ("gpt2", "sequence"), ("llama", "lm"), ("llama", "span"), ("t5", "lm"), ("t5_v1_1", "lm"),
    ("t5", "sequence"), ("bart", "lm"), ("bart", "span"), ("marian", "lm"), ("mt5", "lm"),
    ("pegasus", "lm"), ("gpt_neox", "lm"), ("gemma2", "lm"),
]  # fmt: skip


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize(("name", "head"), CASES)
def test_peft_loads_what_we_save(name, head, dora, tmp_path):
    model, theirs = adapted(name, head, LoraConfig(rank=3, alpha=6.0, dora=dora))
    before = their_logits(theirs, theirs, head)
    adapter_writer(model, LoraConfig(rank=3, alpha=6.0, dora=dora), "base")(tmp_path)
    loaded = peft.PeftModel.from_pretrained(theirs, str(tmp_path))
    want = their_logits(loaded, theirs, head)
    assert close(logits(model, theirs), want) and not close(before, want, 1e-2)
    on_disk = {
        k.replace(".default", "").replace("lora_magnitude_vector.weight", "lora_magnitude_vector")
        for k in loaded.state_dict()
        if "lora_" in k
    }
    assert on_disk == {k for k in load_file(tmp_path / "adapter_model.safetensors") if "lora_" in k}
    loaded.save_pretrained(tmp_path / "again")  # and what PEFT makes of it comes back
    back = ours(reference(name, head))
    load_adapter(back, tmp_path / "again")
    assert close(logits(back, theirs), want)


@pytest.mark.parametrize(("name", "auto"), [("gpt2", "CausalLM"), ("llama", "CausalLM"), ("t5", "Seq2SeqLM")])
def test_transformers_and_peft_load_the_folder_by_its_name_alone(name, auto, tmp_path):
    model, theirs = adapted(name, "lm", LoraConfig(rank=3, alpha=6.0))
    theirs.save_pretrained(tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    adapter_writer(model, LoraConfig(rank=3, alpha=6.0), str(tmp_path / "base"))(tmp_path / "adapter")
    for library, prefix in ((transformers, "AutoModelFor"), (peft, "AutoPeftModelFor")):
        loaded = getattr(library, prefix + auto).from_pretrained(tmp_path / "adapter").eval()
        assert close(logits(model, theirs), their_logits(loaded, theirs, "lm"))


THEIRS = [
    ("bert", "sequence", {"target_modules": ["query", "value"]}),
    ("bert", "sequence", {"target_modules": "all-linear"}),
    ("bert", "lm", {"target_modules": ["query", "intermediate.dense"], "lora_dropout": 0.5}),
    ("modernbert", "token", {"target_modules": ["Wqkv", "Wo"], "use_dora": True}),
    ("albert", "sequence", {"target_modules": "all-linear"}),
    ("gpt2", "lm", {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
    ("llama", "lm", {"target_modules": ["q_proj", "v_proj"]}),
    ("llama", "lm", {"target_modules": ["k_proj", "up_proj"], "use_dora": True}),
    ("llama", "lm", {"target_modules": ["q_proj", "v_proj", "gate_proj"], "use_rslora": True,
                     "rank_pattern": {"layers.1.self_attn.v_proj": 2}, "alpha_pattern": {"gate_proj": 5}}),
    ("llama", "lm", {"target_modules": "all-linear", "layers_to_transform": None}),
    ("llama", "sequence", {"target_modules": ["v_proj"], "layers_to_transform": [1]}),
    ("qwen3", "lm", {"target_modules": ["o_proj"], "modules_to_save": ["lm_head"]}),
    ("gpt_neox", "lm", {"target_modules": ["query_key_value"], "use_dora": True}),
    ("phi3", "lm", {"target_modules": ["qkv_proj", "down_proj"]}),
    ("t5", "lm", {"target_modules": ["q", "v", "wi"]}),
    ("bart", "lm", {"target_modules": ["v_proj", "k_proj", "fc2"], "use_dora": True}),
    ("roberta", "sequence", {"target_modules": ["key"]}),
]  # fmt: skip
TASK = {"sequence": "SEQ_CLS", "token": "TOKEN_CLS", "span": "QUESTION_ANS"}


def peft_adapter(theirs, head: str, folder, **options):
    """A folder that PEFT saved, with nothing at zero, and the model it saved."""
    task = TASK.get(head) or (
        "SEQ_2_SEQ_LM" if theirs.config.is_encoder_decoder else "CAUSAL_LM" if options.pop("causal", True) else None
    )
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(theirs, peft.LoraConfig(task_type=task, r=4, lora_alpha=6, **options))
    shake({n: p for n, p in wrapped.named_parameters() if "lora_" in n or "modules_to_save" in n})
    wrapped.save_pretrained(folder)
    return wrapped


@pytest.mark.parametrize(("name", "head", "options"), THEIRS)
def test_what_peft_saves_computes_the_same(name, head, options, tmp_path):
    theirs = reference(name, head)
    options = dict(options) | ({"causal": False} if name == "bert" and head == "lm" else {})
    want = their_logits(peft_adapter(theirs, head, tmp_path, **options), theirs, head)
    model = ours(reference(name, head))
    plain = logits(model, theirs)
    load_adapter(model, tmp_path)
    assert close(logits(model, theirs), want, merging(want)) and not close(plain, want, 1e-3)
    merge_lora(model)
    assert close(logits(model, theirs), want, merging(want))


@pytest.mark.parametrize(("change", "says"), [
    ({"peft_type": "LOHA"}, "peft_type: 'LOHA' is not supported"),
    ({"bias": "all"}, "bias: 'all'"),
    ({"lora_bias": True}, "lora_bias: True"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights: 'pissa'"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    ({"layer_replication": [[0, 2]]}, "layer_replication"),
    ({"r": 5}, r"query.lora_A: shape \(4, 32\), expected \(5, 32\)"),
    ({"use_dora": True}, "lora_magnitude_vector: shape missing"),
], ids=lambda v: next(iter(v)) if isinstance(v, dict) else "")  # fmt: skip
def test_a_setting_that_would_compute_something_else_is_refused(change, says, tmp_path):
    theirs = reference("bert", "sequence")
    peft_adapter(theirs, "sequence", tmp_path, target_modules=["query"])
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    model = ours(reference("bert", "sequence"))
    with pytest.raises(ModelError, match=says):
        load_adapter(model, tmp_path)
    assert not adapters(model) and trainable(model)[0] == trainable(model)[1]


def test_an_adapter_of_another_model_is_refused(tmp_path):
    peft_adapter(reference("llama"), "lm", tmp_path, target_modules=["q_proj"])
    with pytest.raises(ModelError, match=r"(?s)does not fit a GPT2LMHeadModel.*q_proj.*no such matrix"):
        load_adapter(ours(reference("gpt2")), tmp_path)


def test_an_embedding_trained_apart_from_its_tied_head_is_refused(tmp_path):
    peft_adapter(reference("llama_tied"), "lm", tmp_path, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    with pytest.raises(ModelError, match="one tensor cannot be both"):
        load_adapter(ours(reference("llama_tied")), tmp_path)


@pytest.mark.parametrize("saves", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_an_embedding_or_head_trained_apart_makes_the_folder_an_untied_model(saves, tmp_path):
    theirs = reference("llama_tied")
    theirs.save_pretrained(tmp_path / "base")
    fresh = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    options = {"target_modules": ["q_proj"], "modules_to_save": saves}
    want = their_logits(peft_adapter(fresh, "lm", tmp_path / "adapter", **options), theirs, "lm")
    loaded = lmkit.load(tmp_path / "adapter")
    assert not loaded.config.tied and close(logits(loaded.model, theirs), want, merging(want))
    loaded.save(tmp_path / "saved")
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert close(their_logits(whole, theirs, "lm"), want, merging(want))


def test_a_shared_matrix_that_cannot_be_taken_apart_is_refused_by_name(tmp_path):
    theirs = reference("t5")
    theirs.save_pretrained(tmp_path / "base")
    fresh = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "base")
    peft_adapter(fresh, "lm", tmp_path / "adapter", target_modules=["q"], modules_to_save=["shared"])
    with pytest.raises(ModelError, match=r"modules_to_save.*shared\.weight.*in a t5"):
        lmkit.load(tmp_path / "adapter")


@pytest.mark.parametrize(("break_it", "says"), [
    (lambda f: (f / "adapter_model.safetensors").unlink(), "no adapter_model.safetensors"),
    (lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"), "pickle"),
    (lambda f: (f / "adapter_model.safetensors").write_bytes(b"x" * 99), "damaged"),
    (lambda f: (f / "adapter_config.json").write_text("[1"), "JSON object"),
], ids=["missing", "pickle", "damaged", "config"])  # fmt: skip
def test_a_damaged_folder_is_refused(break_it, says, tmp_path):
    model, _ = adapted("llama", "lm")
    adapter_writer(model, SMALL, "base")(tmp_path)
    break_it(tmp_path)
    with pytest.raises(ModelError, match=says):
        load_adapter(ours(reference("llama")), tmp_path)


def test_the_names_peft_is_told_mean_the_adapted_modules_only(tmp_path):
    """`output.dense` would also reach `attention.output.dense`; a part of the blocks has no short name."""
    for targets, expected in [
        (("attention",), ["attention.output.dense", "attention.self.key", "attention.self.query",
                          "attention.self.value"]),
        (("mlp.down",), [f"bert.encoder.layer.{i}.output.dense" for i in range(3)]),
        (("mlp.down", "attention.output"), ["attention.output.dense", "output.dense"]),
        (("blocks.1.mlp.up",), ["bert.encoder.layer.1.intermediate.dense"]),
    ]:  # fmt: skip
        config = LoraConfig(rank=3, alpha=6.0, targets=targets)
        model, _ = adapted("bert", "sequence", config)
        adapter_writer(model, config, "base")(tmp_path)
        said = json.loads((tmp_path / "adapter_config.json").read_text())
        assert said["target_modules"] == expected
        assert (said["task_type"], said["modules_to_save"]) == ("SEQ_CLS", ["bert.pooler.dense", "classifier"])


def test_ranks_and_scales_of_a_loaded_adapter_are_saved(tmp_path):
    theirs = reference("llama")
    pattern = {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"layers.0.self_attn.q_proj": 9}}
    options = {"target_modules": ["q_proj", "v_proj"], "use_rslora": True, **pattern}
    want = their_logits(peft_adapter(theirs, "lm", tmp_path, **options), theirs, "lm")
    model = ours(reference("llama"))
    load_adapter(model, tmp_path)
    again, fresh = tmp_path / "again", reference("llama")
    again.mkdir()
    adapter_writer(model, LoraConfig(rank=4, alpha=6.0), "base")(again)
    assert close(their_logits(peft.PeftModel.from_pretrained(fresh, str(again)), fresh, "lm"), want)


# ---------------------------------------------------------------- folders


@pytest.fixture
def base(tmp_path):
    reference("bert").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("named", ["relative", "absolute"])
def test_an_adapter_with_a_new_head_loads_onto_its_base(named, base, tmp_path):
    """As a run on a model for masked words leaves it: under `latest/`, with labels of its own."""
    theirs = reference("bert", "sequence")
    body = reference("bert").state_dict()
    theirs.load_state_dict({k: v for k, v in body.items() if k in theirs.state_dict()}, strict=False)
    theirs.config.id2label = {0: "bad", 1: "fair", 2: "good"}
    model = ours(theirs)
    add_lora(model, SMALL)
    shake(adapter_tensors(model))
    folder = tmp_path / "run" / "latest"
    folder.mkdir(parents=True)
    adapter_writer(model, SMALL, str(base) if named == "absolute" else "../../base")(folder)
    loaded = lmkit.load(tmp_path / "run")
    assert loaded.config.labels == ("bad", "fair", "good") and not adapters(loaded.model)
    assert close(loaded.logits(**inputs(theirs)), logits(model, theirs))
    loaded.save(tmp_path / "whole")
    assert close(lmkit.load(tmp_path / "whole").logits(**inputs(theirs)), logits(model, theirs))


@pytest.mark.parametrize(("name", "head", "target"), [
    ("bert", "sequence", "query"), ("bert", "token", "dense"), ("roberta", "sequence", "key"),
    ("llama", "token", "v_proj"),
    ("modernbert", "token", "Wqkv"), ("gpt2", "sequence", "c_attn"), ("bart", "span", "v_proj"), ("t5", "token", "q"),
])  # fmt: skip
def test_what_peft_trains_on_a_language_model_loads_with_its_labels(name, head, target, tmp_path):
    """PEFT writes neither the labels nor a config.json: the head is in the adapter, the body in the base."""
    reference(name, "pairs" if (name, head) == ("bert", "sequence") else "lm").save_pretrained(tmp_path / "base")
    labels = 2 if head == "span" else 5
    theirs = auto_class(name, head).from_pretrained(tmp_path / "base", num_labels=labels)
    options = {"modules_to_save": ["head"]} if name == "modernbert" else {}
    wrapped = peft_adapter(theirs, head, tmp_path / "adapter", target_modules=[target], **options)
    loaded = lmkit.load(tmp_path / "adapter")
    assert loaded.config.head == head and len(loaded.config.labels) == labels
    assert close(logits(loaded.model, theirs), their_logits(wrapped, theirs, head))


def test_a_base_that_is_not_here_is_explained(base, tmp_path):
    model, _ = adapted("bert", "sequence")
    (tmp_path / "adapter").mkdir()
    adapter_writer(model, SMALL, "google-bert/bert-base-cased")(tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"(?s)hf download google-bert/bert-base-cased.*then write FOLDER"):
        lmkit.load(tmp_path / "adapter")
    for name, says in (("", "base_model_name_or_path is missing"), (".", "is an adapter itself")):
        adapter_writer(model, SMALL, name)(tmp_path / "adapter")
        with pytest.raises(ModelError, match=says):
            lmkit.load(tmp_path / "adapter")


def test_a_head_that_is_nowhere_is_missed(base, tmp_path):
    model, _ = adapted("bert", "sequence")
    adapter_writer(model, SMALL, str(base))(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    save_file({k: v for k, v in tensors.items() if "classifier" not in k}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"missing classifier\.weight"):
        lmkit.load(tmp_path)


def test_every_encoder_decoder_has_a_case():
    assert {name for name, _ in CASES} >= set(SEQ2SEQ) - {"mbart", "m2m_100", "transformer"}
