"""Every family computes what transformers computes, with every head, and every detail of it is needed."""

import pytest
import torch
import transformers

import lmkit
from lmkit.architecture.families import FAMILIES
from lmkit.base.errors import ModelError, UserError
from lmkit.model.formats.config_json import config_from_hf, config_to_hf
from lmkit.model.formats.huggingface import from_hf, load_folder, save_folder, to_hf
from lmkit.model.transformer import Transformer
from tests.model.families import (
    CASES,
    CONFIGS,
    DECODERS,
    ENCODERS,
    ROBERTAS,
    SEQ2SEQ,
    SINUSOIDAL,
    auto_class,
    decoder_inputs,
    described,
    inputs,
    ours,
    reference,
)  # fmt: skip

TOLERANCE = 2e-5
NO_IDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


@torch.no_grad()
def gap(model: Transformer, theirs) -> float:
    """Largest difference in logits over real positions."""
    feed = inputs(theirs)
    targets = decoder_inputs() if model.config.stacks == "encoder_decoder" else None
    more = {} if targets is None else {"decoder_input_ids": targets}
    want = theirs(**feed, **more).logits
    keep = feed["attention_mask"].bool()
    got = model.head(model(feed["input_ids"], keep, types=feed.get("token_type_ids"), targets=targets))
    difference = (got - want).abs()
    return (difference if targets is not None else difference[keep]).max().item()


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_transformers(name):
    theirs = reference(name)
    assert gap(ours(theirs), theirs) <= TOLERANCE


MUTATIONS = [
    ("gpt2", {"activation": "gelu"}),
    ("gpt2", {"norm_eps": 1e-4}),
    ("llama", {"rope_theta": 9000.0}),
    ("llama", {"norm_eps": 1e-4}),
    ("llama", {"activation": "gelu"}),
    ("llama3", {"rope_scaling": None}),
    ("llama_linear", {"rope_scaling": None}),
    ("mistral", {"sliding_window": 6}),
    ("mistral", {"sliding_window": 8}),
    ("qwen3_window", {"window_layers": (2,)}),
    ("qwen3", {"qk_norm": "after_rope"}),
    ("llama_yarn", {"rope_scaling": None}),
    ("smollm3", {"nope_layers": ()}),
    ("smollm3_window", {"sliding_window": 7}),
    ("phi3", {"sliding_window": 8}),
    ("phi3_longrope", {"rope_scaling": None}),
    ("gemma", {"norm_plus_one": False}),
    ("gemma", {"activation": "gelu"}),
    ("gemma", {"scaled_embedding": False}),
    ("gemma2", {"attention_softcap": 6.0}),
    ("gemma2", {"logit_softcap": None}),
    ("gemma2", {"query_pre_attn_scalar": None}),
    ("gemma2", {"sliding_window": 8}),
    ("gemma3_text", {"qk_norm": "none"}),
    ("gemma3_text", {"rope_theta_local": 5_000.0}),
    ("gemma3_text", {"rope_scaling": None}),
    ("gpt_neox", {"partial_rotary_factor": 0.25}),
    ("gpt_neox", {"parallel_residual": False}),
    ("nanochat", {"rope_reversed": False}),
    ("nanochat", {"qk_norm": "before_rope", "norm_eps": 1e-2}),
    ("nanochat", {"embedding_norm": False}),
    ("nanochat", {"logit_softcap": 14.0}),
    ("nanochat", {"activation": "relu"}),
    ("bert", {"norm_eps": 1e-5}),
    ("bert", {"activation": "gelu_tanh"}),
    ("bert", {"norm_position": "pre"}),
    ("bert", {"head_bias": "none"}),
    ("bert", {"embedding_norm": False}),
    ("roberta", {"position_padding_id": 9}),
    ("roberta", {"norm_eps": 1e-5}),
    ("electra", {"activation": "gelu_tanh"}),
    ("albert", {"activation": "gelu"}),
    ("albert", {"layer_groups": 4, "group_layers": 1}),
    ("modernbert", {"sliding_window": 6}),
    ("modernbert", {"sliding_window": 10}),
    ("modernbert", {"rope_theta_local": 160_000.0}),
    ("modernbert", {"sliding_window": None}),
    ("modernbert", {"norm_eps": 1e-3}),
    ("modernbert", {"activation": "gelu_tanh"}),
    ("modernbert", {"first_norm": True}),
    ("t5", {"scaled_attention": True}),
    ("t5", {"scaled_head": False}),
    ("t5", {"relative_distance": 16}),
    ("t5", {"norm_eps": 1e-5}),
    ("t5_v1_1", {"activation": "gelu"}),
    ("t5_v1_1", {"scaled_head": True}),
    ("bart", {"embedding_norm": False}),
    ("bart", {"norm_eps": 1e-4}),
    ("bart", {"head_bias": "none"}),
    ("mbart", {"norm_position": "post"}),
    ("mbart", {"final_norm": False}),
    ("marian", {"scaled_embedding": False}),
    ("marian", {"activation": "relu"}),
    ("transformer", {"position_offset": 1}),
    ("m2m_100", {"closed_sinusoids": False}),
]


@pytest.mark.parametrize(("name", "change"), MUTATIONS, ids=[f"{n}-{next(iter(c))}" for n, c in MUTATIONS])
def test_a_wrong_detail_is_seen(name, change):
    theirs = reference(name)
    assert gap(ours(theirs, **change), theirs) > TOLERANCE


def test_a_wrong_position_offset_is_seen():
    theirs = reference("bart")
    model = ours(theirs)
    for stack in model.stacks:
        stack.inputs.position.weight.data = stack.inputs.position.weight.data.roll(1, 0)
    assert gap(model, theirs) > TOLERANCE


def unique(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without the second names of tied tensors."""
    seen: dict[tuple, str] = {}
    return {k: v for k, v in state.items() if seen.setdefault((v.data_ptr(), v.shape), k) == k}


@pytest.mark.parametrize("name", CASES)
def test_round_trip_is_byte_equal(name):
    theirs = reference(name)
    state, model = theirs.state_dict(), ours(theirs)
    got = dict(to_hf(model))
    assert all(torch.equal(got[k], state[k]) for k in got)
    copies = FAMILIES[model.config.family].copies
    assert {copies.get(k, k) for k in unique(state) if "embed_positions" not in k or name not in SINUSOIDAL} - {
        copies.get(k, k) for k in got
    } <= ({k for k in state if "embed_positions" in k} if model.config.positions == "sinusoidal" else set())
    config = config_from_hf(described(theirs))
    pad = {"pad_token_id": theirs.config.pad_token_id}
    assert config_from_hf(config_to_hf(config, NO_IDS | pad)) == config


HEADS = [
    (name, kind)
    for name in ("gpt2", "llama", "mistral", "qwen2", "qwen3", "smollm3", "phi3", "gemma", "gemma2", "gemma3_text",
                 "gpt_neox", "bert", "distilbert", "roberta", "xlm-roberta",
                 "camembert", "electra", "albert", "modernbert", "t5", "mt5", "bart", "mbart")
    for kind in ("sequence", "token", "span")
    if kind in FAMILIES[name].heads
]  # fmt: skip


@pytest.mark.parametrize(("name", "head"), HEADS)
def test_every_head_equals_transformers(name, head, tmp_path):
    """Through the folder transformers saves, into ours, and out to a folder that transformers loads."""
    theirs = reference(name, head)
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = lmkit.load(tmp_path / "theirs")
    assert (loaded.config.head, len(loaded.config.labels)) == (head, 2 if head == "span" else 3)
    feed = inputs(theirs)
    with torch.no_grad():
        out = theirs(**feed)
    want = torch.stack((out.start_logits, out.end_logits), -1) if head == "span" else out.logits
    got = loaded.logits(**feed)
    real = feed["attention_mask"].bool() if head != "sequence" else slice(None)
    assert (got - want)[real].abs().max() <= TOLERANCE
    loaded.save(tmp_path / "ours")
    back, report = auto_class(name, head).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(back) is type(theirs) and not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        again = back.eval()(**feed)
    again = torch.stack((again.start_logits, again.end_logits), -1) if head == "span" else again.logits
    assert (again - want)[real].abs().max() <= TOLERANCE


def test_the_mean_of_a_text_can_stand_for_it():
    theirs = reference("modernbert", "sequence")
    theirs.config.classifier_pooling = "mean"
    model, feed = ours(theirs), inputs(theirs)
    keep = feed["attention_mask"].bool()
    with torch.no_grad():
        want = theirs(**feed).logits
        assert (model.head(model(feed["input_ids"], keep), keep=keep) - want).abs().max() <= TOLERANCE


@pytest.mark.parametrize("name", ["bert", "albert"])
def test_the_pretraining_heads_equal_transformers(name, tmp_path):
    theirs = reference(name, "pairs")
    model, feed = ours(theirs), inputs(theirs)
    keep = feed["attention_mask"].bool()
    with torch.no_grad():
        want = theirs(**feed)
        states = model(feed["input_ids"], keep, types=feed["token_type_ids"])
        pairs = want.seq_relationship_logits if name == "bert" else want.sop_logits
        assert (model.pairs(states) - pairs).abs().max() <= TOLERANCE
        assert (model.head(states) - want.prediction_logits)[keep].abs().max() <= TOLERANCE
    save_folder(model, tmp_path, NO_IDS)
    back, report = type(theirs).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in back.state_dict().items())


@pytest.mark.parametrize("name", CASES)
def test_transformers_loads_what_we_save(name, tmp_path):
    theirs = reference(name)
    model = ours(theirs)
    save_folder(model, tmp_path, {**NO_IDS, "pad_token_id": theirs.config.pad_token_id})
    back, report = auto_class(name).from_pretrained(tmp_path, output_loading_info=True)
    assert type(back) is type(theirs) and not report["missing_keys"] and not report["unexpected_keys"]
    assert gap(model, back.eval()) <= TOLERANCE
    assert gap(load_folder(tmp_path), theirs) <= TOLERANCE
    sinusoidal = model.config.positions == "sinusoidal"  # transformers counts the fixed table
    fixed = sum(p.numel() for k, p in back.named_parameters() if "embed_positions" in k and sinusoidal)
    assert sum(model.num_parameters().values()) == back.num_parameters() - fixed


@pytest.mark.parametrize("name", ["bert", "t5", "bart", "gpt2"])
def test_a_body_without_a_head_gives_its_states(name, tmp_path):
    theirs = reference(name, "none")
    theirs.save_pretrained(tmp_path)
    feed = inputs(theirs)
    more = {"decoder_input_ids": decoder_inputs()} if name in SEQ2SEQ else {}
    with torch.no_grad():
        want = theirs(**feed, **more)
    loaded = lmkit.load(tmp_path)
    got = loaded.hidden(**feed, **more)
    real = slice(None) if more else feed["attention_mask"].bool()
    assert (got - want.last_hidden_state)[real].abs().max() <= TOLERANCE
    if name == "bert":
        assert (loaded.model.head(got) - want.pooler_output).abs().max() <= TOLERANCE
    with pytest.raises(UserError, match="without a head"):
        loaded.logits(**feed, **more)


@pytest.mark.parametrize("name", [n for n in DECODERS + ENCODERS if n not in ROBERTAS])
def test_packed_documents_equal_separate_ones(name):
    """Segments and restarting positions: a row of two documents gives each what it gets alone."""
    theirs = reference(name)
    model, ids = ours(theirs), inputs(theirs)["input_ids"]
    segments, positions = torch.zeros_like(ids), torch.arange(23).repeat(3, 1)
    segments[:, 9:], positions[:, 9:] = 1, torch.arange(14)
    with torch.no_grad():
        packed = model(ids, segments=segments, positions=positions)
        torch.testing.assert_close(packed[:, :9], model(ids[:, :9]), rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(packed[:, 9:], model(ids[:, 9:]), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", DECODERS + SEQ2SEQ)
def test_cached_steps_equal_one_pass(name):
    theirs = reference(name)
    model, feed = ours(theirs), inputs(theirs)
    ids, keep = decoder_inputs(), feed["attention_mask"].bool()
    with torch.no_grad():
        run = model
        if name in SEQ2SEQ:
            states = model.encode(feed["input_ids"], keep)
            read = model.read(states)
            run = lambda t, caches=None: model.decode(t, read if caches else states, keep, caches)
        caches = model.new_caches(3, 17)
        parts = [run(ids[:, :6], caches=caches), run(ids[:, 6:9], caches=caches)]
        parts += [run(ids[:, i : i + 1], caches=caches) for i in range(9, 17)]
        torch.testing.assert_close(torch.cat(parts, 1), run(ids), rtol=0, atol=TOLERANCE)


def test_every_family_has_a_case():
    types = {CONFIGS[name].model_type for name in CASES}
    assert {family.model_type or name for name, family in FAMILIES.items()} == types


def test_positions_of_roberta_skip_padding_inside_a_row():
    theirs = reference("roberta")
    model, feed = ours(theirs), inputs(theirs)
    feed["input_ids"][:, 3] = theirs.config.pad_token_id
    with torch.no_grad():
        want = theirs(feed["input_ids"]).logits
        assert (model.head(model(feed["input_ids"])) - want).abs().max() <= TOLERANCE


# ---------------------------------------------------------------- files as they are found


def test_old_names_prefixes_and_copies_are_understood():
    theirs = reference("bert")
    state = {k: v.clone() for k, v in theirs.state_dict().items()}
    old = {k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
           for k, v in state.items()}  # fmt: skip
    old["bert.embeddings.position_ids"] = torch.arange(48)[None]
    del old["bert.embeddings.word_embeddings.weight"]  # its tied copy survives
    model = Transformer(config_from_hf(described(theirs)))
    from_hf(model, old, "old")
    assert gap(model.eval(), theirs) <= TOLERANCE


def test_tied_copies_that_differ_are_an_error():
    theirs = reference("bert")
    state = {k: v.clone() for k, v in theirs.state_dict().items()}
    state["cls.predictions.decoder.weight"] += 1
    with pytest.raises(ModelError, match="should be one tensor and differ"):
        from_hf(Transformer(config_from_hf(described(theirs))), state, "x")


def test_an_unused_pooler_is_left_out_with_a_note(capsys):
    """As in roberta-base and bert-base-uncased on the hub."""
    theirs = reference("roberta")
    state = dict(theirs.state_dict()) | {"roberta.pooler.dense.weight": torch.ones(32, 32)}
    from_hf(Transformer(config_from_hf(described(theirs))), state, "hub")
    assert "1 tensors of a pooler" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "break_it", "says"), [
    ("bert", lambda s: s.pop("cls.predictions.bias") is None or s.pop("cls.predictions.decoder.bias"),
     "missing cls.predictions.bias"),
    ("t5", lambda s: s.update(extra=torch.ones(1)), "left over extra"),
    ("bart", lambda s: s.update({"model.encoder.layers.0.fc1.weight": torch.ones(2, 2)}), "shape"),
], ids=["missing", "left over", "shape"])  # fmt: skip
def test_tensors_that_do_not_fit_are_listed(name, break_it, says):
    theirs = reference(name)
    state = dict(theirs.state_dict())
    break_it(state)
    with pytest.raises(ModelError, match=says):
        from_hf(Transformer(config_from_hf(described(theirs))), state, "x")


@pytest.mark.parametrize(("change", "says"), [
    ({"model_type": "deberta"}, "not supported"),
    ({"is_decoder": True}, "is_decoder"),
    ({"hidden_act": "quick_gelu"}, "quick_gelu"),
    ({"position_embedding_type": "relative_key"}, "relative_key"),
])  # fmt: skip
def test_a_config_that_would_compute_something_else_is_refused(change, says):
    with pytest.raises(ModelError, match=says):
        config_from_hf(CONFIGS["bert"].to_dict() | change)


def test_of_a_discriminator_the_body_is_read(tmp_path, capsys):
    theirs = transformers.ElectraForPreTraining(CONFIGS["electra"]).eval()
    theirs.save_pretrained(tmp_path)
    loaded, feed = lmkit.load(tmp_path), inputs(theirs)
    assert "4 tensors of a pooler or head" in capsys.readouterr().err
    with torch.no_grad():
        want = theirs.electra(**feed).last_hidden_state
    assert (loaded.hidden(**feed) - want)[feed["attention_mask"].bool()].abs().max() <= TOLERANCE


def test_a_class_that_does_something_else_is_refused_by_name(tmp_path):
    transformers.BertForNextSentencePrediction(CONFIGS["bert"]).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="BertForNextSentencePrediction"):
        lmkit.load(tmp_path)


def test_files_of_gpt_neox_under_their_old_names_are_read():
    theirs = reference("gpt_neox")
    old = {name.replace("lm_head", "embed_out"): x for name, x in theirs.state_dict().items()}
    old["gpt_neox.layers.0.attention.masked_bias"] = torch.tensor(-1e9)
    old["gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(2)
    model = Transformer(config_from_hf(described(theirs)))
    from_hf(model, old, "old")
    assert gap(model.eval(), theirs) <= TOLERANCE
