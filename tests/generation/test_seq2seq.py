"""Encoder-decoders write what transformers' do, read each source once, and show sentinels and what they stand for."""

import json
from unittest.mock import patch

import pytest
import torch
import transformers as hf

import lmkit
from lmkit.base.errors import ModelError, UserError
from lmkit.generation import engine
from lmkit.generation.completions import Opening
from lmkit.generation.engine import generate, sample_text
from lmkit.generation.prompts import source_ids
from lmkit.generation.sampling import SamplingConfig
from lmkit.model.layers import CrossAttention
from lmkit.model.transformer import Transformer
from lmkit.ops import writing as command
from lmkit.text.special import Special
from lmkit.text.tokenizer import Tokenizer
from tests.generation.folders import SIZE, seq2seq_folder, tokenizer
from tests.model import families
from tests.model.families import SEQ2SEQ, ours

SOURCES = [torch.randint(3, 99, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (9, 1, 4, 20, 5)]
GREEDY = {"temperature": 0.0, "max_tokens": 16}


def reference(name):
    """Random weights, but a decoder that listens to its encoder."""
    theirs = families.reference(name)
    for key, p in theirs.named_parameters():
        if "encoder_attn.out_proj.weight" in key or "EncDecAttention.o." in key:
            p.data *= 10
    return theirs


def rows(theirs, sources=SOURCES, eos=(), samples=1, model=None, **options):
    opening = Opening(theirs.config.decoder_start_token_id, theirs.generation_config.forced_bos_token_id)
    config = SamplingConfig(**options)
    return list(generate(model or ours(theirs), sources, config, frozenset(eos), samples, opening=opening))


def texts(*args, **options):
    return [row.ids for row in rows(*args, **options)]


def greedy_by_transformers(theirs, sources=SOURCES, eos=None, **options):
    """Of one padded batch. Nothing is forced at the end: lmkit lets a text that is too long be cut off. No cache:
    transformers sizes that of T5 by its encoder."""
    width, pad = max(map(len, sources)), theirs.config.pad_token_id or 0
    ids = torch.tensor([s + [pad] * (width - len(s)) for s in sources])
    keep = torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in sources])
    theirs.generation_config.forced_eos_token_id, theirs.generation_config.eos_token_id = None, eos
    settings = {"max_new_tokens": 16, "pad_token_id": pad, "use_cache": False} | options
    out = theirs.generate(ids, attention_mask=keep, do_sample=False, **settings)[:, 1:].tolist()
    return [row[: row.index(eos) + 1] if eos in row else row for row in out]


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_ragged_greedy_equals_transformers(name):
    theirs = reference(name)
    want = greedy_by_transformers(theirs, repetition_penalty=1.3)
    assert texts(theirs, repetition_penalty=1.3, **GREEDY) == want
    end = want[0][2]
    ended = greedy_by_transformers(theirs, eos=end, repetition_penalty=1.3)
    found = rows(theirs, eos=[end], repetition_penalty=1.3, **GREEDY)
    assert [r.ids for r in found] == ended and found[0].finish == "stop" and len(found[0].ids) <= 3


@pytest.mark.parametrize("name", ["t5", "bart", "marian"])
def test_caches_change_nothing(name):
    """Against the whole model run again for each token, one source at a time."""
    theirs = reference(name)
    model = ours(theirs)
    for source, got in zip(SOURCES, texts(theirs, **GREEDY), strict=True):
        read = [theirs.config.decoder_start_token_id]
        for _ in range(16):
            with torch.no_grad():
                states = model(torch.tensor([source]), targets=torch.tensor([read]))
                read.append(int(model.head(states[0, -1]).argmax()))
        assert got == read[1:]


@pytest.mark.parametrize("name", ["t5", "mbart"])
def test_same_seed_same_text_alone_or_in_any_batch(name, monkeypatch):
    theirs, options = reference(name), {"temperature": 1.5, "top_p": 0.95, "max_tokens": 12, "seed": 3}
    together = texts(theirs, samples=3, **options)
    alone = [ids for s in SOURCES for ids in texts(theirs, [s], samples=3, **options)]
    monkeypatch.setattr(engine, "MAX_TOKENS", 70)
    assert together == alone == texts(theirs, samples=3, **options)
    assert len({tuple(ids) for ids in together[:3]}) == 3
    assert together != texts(theirs, samples=3, **options | {"seed": 4})


def test_a_source_is_read_once_and_projected_once():
    theirs, read, projected = reference("bart"), [], []
    encode, project = Transformer.encode, CrossAttention.project
    watch_encode = lambda self, tokens, *more: read.append(tokens.shape) or encode(self, tokens, *more)
    watch_project = lambda self, memory: projected.append(memory.shape) or project(self, memory)
    with patch.object(Transformer, "encode", watch_encode), patch.object(CrossAttention, "project", watch_project):
        texts(theirs, samples=4, max_tokens=10)
    assert read == [(5, 20)] and projected == [(5, 20, 32)] * 3  # blocks of the decoder


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_logprobs_are_those_of_the_model(name):
    theirs = reference(name)
    found = rows(theirs, max_tokens=5, temperature=0.7, top_k=9)
    for row in found:
        read = torch.tensor([[theirs.config.decoder_start_token_id, *row.ids[:-1]]])
        with torch.no_grad():
            logits = theirs(torch.tensor([row.prompt]), decoder_input_ids=read).logits[0]
        want = logits.log_softmax(-1).gather(1, torch.tensor(row.ids)[:, None]).squeeze(1)
        torch.testing.assert_close(torch.tensor(row.logprobs), want, rtol=0, atol=5e-5)
    assert len({row.logprobs[0] for row in found}) == len(SOURCES)  # another source, another thought


def test_the_context_bounds_source_and_text_apart():
    theirs = reference("bart")  # context 48
    with pytest.raises(UserError, match=r"prompt 2 has 49 tokens.*context of 48(.|\n)*48 tokens or fewer"):
        rows(theirs, [[5], [6] * 49], max_tokens=1)
    [row] = rows(theirs, [[6] * 48], max_tokens=1000)
    assert (len(row.ids), row.finish) == (48, "length")
    wanted = greedy_by_transformers(theirs, [[6] * 48], max_new_tokens=48)
    assert texts(theirs, [[6] * 48], temperature=0, max_tokens=1000) == wanted


def test_t5_reads_and_writes_beyond_its_context():
    theirs = reference("t5")
    theirs.config.n_positions = 16
    source = SOURCES[3] * 2
    assert texts(theirs, [source], **GREEDY | {"max_tokens": 30}) == greedy_by_transformers(
        theirs, [source], max_new_tokens=30
    )


@pytest.mark.parametrize("where", ["config", "generation_config"])
def test_forced_and_forbidden_tokens_are_those_of_transformers(where, tmp_path):
    """As BART's and mBART's configurations force a first token, and Marian's forbid padding."""
    theirs = seq2seq_folder(tmp_path, "bart")
    free = lmkit.load(tmp_path).generate(["The quick"], temperature=0, max_tokens=8)[0].ids
    rules = {"forced_bos_token_id": 77, "bad_words_ids": [[free[0]], [free[2]]]}
    path = tmp_path / f"{where}.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | rules))
    if where == "config":
        (tmp_path / "generation_config.json").unlink()
    model = lmkit.load(tmp_path)
    end = {"forced_eos_token_id": config["forced_eos_token_id"]}  # at the last place
    for options in ({}, {"repetition_penalty": 1.5}):
        want = greedy_by_transformers(theirs, [source_ids(model.tokenizer, "The quick")], **end, **rules, **options)
        [row] = model.generate(["The quick"], temperature=0, max_tokens=16, **options)
        assert row.ids == want[0] and row.ids[0] == 77 and not {free[0], free[2]} & set(row.ids)
    model.save(tmp_path / "copy")
    assert lmkit.load(tmp_path / "copy").opening == model.opening == Opening(1, 77, (free[0], free[2]))


# ---------------------------------------------------------------- text


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5")
    seq2seq_folder(folder, "t5")
    return lmkit.load(folder)


def test_sources_are_framed_as_in_training_and_gaps_are_tokens(t5, tmp_path):
    words = t5.tokenizer
    first, second = words.sentinels[:2]
    assert source_ids(words, "The quick") == [*words.encode("The quick"), words.eos_id]
    assert source_ids(words, "") == [words.eos_id]
    # one space goes with the gap, the others are text; any other control token is spelled
    got = source_ids(words, "fox <extra_id_0> over  <extra_id_1></s><extra_id_9>")
    parts = [words.encode(x) for x in ("fox", " over ", "</s><extra_id_9>")]
    assert got == [*parts[0], first, *parts[1], second, *parts[2], words.eos_id]
    assert words.decode(got) == "fox over </s><extra_id_9>"
    assert words.with_gaps.decode(got) == "fox<extra_id_0> over <extra_id_1></s><extra_id_9>"
    assert words.encode("<extra_id_0>") == words.encode("<extra") + words.encode("_id_0>")  # ordinary text elsewhere
    seq2seq_folder(tmp_path, "bart")
    bart = lmkit.load(tmp_path).tokenizer
    assert source_ids(bart, "a <mask>") == [bart.bos_id, *bart.encode("a"), bart.mask_id, bart.eos_id]


def test_what_is_written_is_shown_with_sentinels_and_put_back(t5, capsys):
    words, prompt = t5.tokenizer, "The <extra_id_0> fox <extra_id_1> dog"
    first, second = words.sentinels[:2]
    written = [first, *words.encode(" quick brown"), second, *words.encode(" over the lazy"), words.eos_id]
    with _writes(written):
        [row] = t5.generate([prompt])
        assert row.text == "<extra_id_0> quick brown<extra_id_1> over the lazy" and row.finish == "stop"
        assert row.restored == "The quick brown fox over the lazy dog"
        assert t5.generate(["The fox"])[0].restored == ""
        for stream in (False, True):
            command.write_texts(str(t5.folder), [prompt, "fox"], SamplingConfig(), 1, False, stream, False)
            assert capsys.readouterr().out == f"{row.text}\n{row.restored}\n---\n{row.text}\n"
        command.write_texts(str(t5.folder), [prompt, "fox"], SamplingConfig(), 1, True, False, False)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    usual = {"prompt", "sample", "text", "ids", "logprobs", "finish"}
    assert set(lines[0]) == usual | {"restored"} and set(lines[1]) == usual
    assert lines[0]["ids"] == written and lines[0]["prompt"] == prompt


def _writes(ids):
    """A model that writes `ids`, whatever it thinks."""
    written = iter(())

    def choose(scores, config, rngs):
        nonlocal written
        token = next(written, None)
        if token is None or token == ids[-1]:
            written, token = (iter(ids[1:]), ids[0]) if token is None else (iter(()), token)
        return torch.full((len(scores),), token)

    return patch.object(engine, "choose_tokens", choose)


def test_greedy_text_stop_strings_and_streams(t5, capsys):
    prompts = ["The quick", "", "日本語 <extra_id_0>"]
    free = t5.generate(prompts, temperature=0, max_tokens=20)
    theirs = hf.AutoModelForSeq2SeqLM.from_pretrained(t5.folder)
    sources = [source_ids(t5.tokenizer, p) for p in prompts]
    assert [r.ids for r in free] == greedy_by_transformers(theirs, sources, eos=t5.tokenizer.eos_id, max_new_tokens=20)
    stop = free[0].text[4:7]
    [cut] = t5.generate(prompts[:1], temperature=0, max_tokens=20, stop=(stop,))
    assert cut.text == free[0].text[: free[0].text.index(stop)] and cut.finish == "stop"
    config, shown = SamplingConfig(max_tokens=20, stop=(stop,)), []
    for stream in (False, True):
        command.write_texts(str(t5.folder), prompts[:2], config, 2, as_json=False, stream=stream, allow_pickle=False)
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert shown[0] == "\n---\n".join(r.text for r in t5.generate(prompts[:2], 2, max_tokens=20, stop=(stop,))) + "\n"


def test_samples_in_training_leave_no_trace(t5):
    model, before = t5.model.train(), torch.get_rng_state()
    text = sample_text(model, t5.tokenizer, "fox <extra_id_0>", 10, seed=1)
    assert text and text == sample_text(model, t5.tokenizer, "fox <extra_id_0>", 10, seed=1)
    assert model.training and torch.equal(before, torch.get_rng_state())
    model.eval()


def test_models_that_write_nothing_say_what_they_do(tmp_path):
    config = hf.BartConfig(vocab_size=101, d_model=SIZE["hidden_size"], encoder_layers=1, decoder_layers=1)
    hf.BartForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"BartForSequenceClassification: it labels texts(.|\n)*`load\(...\)\.logits`"):
        lmkit.load(tmp_path).generate(["a"])
    with pytest.raises(UserError, match="it labels texts"):
        command.write_texts(str(tmp_path), ["a"], SamplingConfig(), 1, False, False, False)


def test_a_decoder_without_a_start_is_named(t5):
    nameless = lmkit.load(t5.folder)
    nameless.special = {}
    with pytest.raises(ModelError, match="no decoder_start_token_id"):
        nameless.generate(["a"])


def test_a_tokenizer_without_gaps_is_its_own(t5):
    plain = Tokenizer(tokenizer().backend_tokenizer, Special(bos="<s>", eos="</s>"))
    assert plain.with_gaps is plain and plain.gaps == {}
