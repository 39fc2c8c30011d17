"""From folders to text: what users call."""

import json

import pytest
import torch
import transformers as hf

import lmkit
from lmkit.base.errors import ModelError, UserError
from lmkit.generation.engine import Engine, Request, sample_text
from lmkit.generation.prompts import prompt_ids
from lmkit.generation.sampling import SamplingConfig
from lmkit.generation.stream import HALF
from lmkit.ops import writing as command
from tests.generation.folders import llama_folder, tokenizer
from tests.model.families import inputs, reference

PROMPTS = ["The quick", "", "日本語 fox", "<s>"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    theirs = llama_folder(folder)
    return lmkit.load(folder), theirs


def test_greedy_text_equals_transformers(pair):
    ours, theirs = pair
    words = tokenizer()
    for prompt, row in zip(PROMPTS, ours.generate(PROMPTS, temperature=0, max_tokens=20), strict=True):
        ids = torch.tensor([words.encode(prompt, split_special_tokens=True) or [0]])
        assert row.prompt == ids[0].tolist()  # BOS where the tokenizer puts one; a typed "<s>" is three characters
        want = theirs.generate(ids, do_sample=False, max_new_tokens=20, eos_token_id=1)[0, ids.size(1) :].tolist()
        assert row.ids == want
        assert row.text == words.decode(want, skip_special_tokens=True).replace("\ufffd", "")


def test_stop_strings_end_a_text_and_streams_show_the_same(pair, capsys):
    ours, _ = pair
    [free] = ours.generate(["fox"], temperature=0, max_tokens=30)
    stop = free.text[5:8]
    [cut] = ours.generate(["fox"], temperature=0, max_tokens=30, stop=(stop,))
    assert cut.text == free.text[: free.text.index(stop)] and cut.finish == "stop"
    assert cut.ids == free.ids[: len(cut.ids)]
    config = SamplingConfig(max_tokens=20, stop=(stop,))
    shown = []
    for stream in (False, True):
        command.write_texts(str(ours.folder), PROMPTS, config, 2, as_json=False, stream=stream, allow_pickle=False)
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    rows = ours.generate(PROMPTS, samples=2, max_tokens=20, stop=(stop,))
    assert shown[0] == "\n---\n".join(PROMPTS[r.row // 2] + r.text for r in rows) + "\n"


def test_events_add_up_to_the_texts_of_many_rows_at_once(pair):
    ours, _ = pair
    free = ours.generate([*PROMPTS, "fox"], 3, max_tokens=30, seed=2)
    begun = free[0].text[-1:] + "###"  # a stop string that only begins at the end of a text
    config = SamplingConfig(max_tokens=30, seed=2, stop=(begun, free[-1].text[5:8]), rules=ours.rules)
    engine = Engine(ours.model, ours.tokenizer)
    prompts = [prompt_ids(ours.tokenizer, prompt) for prompt in [*PROMPTS, "fox"]]
    requests = [Request(ids, config, ours.eos, sample) for ids in prompts for sample in range(3)]
    completions = [engine.submit(request) for request in requests]
    events = []
    while new := engine.step():
        assert all(event.completion.text.endswith(event.text) for event in new)
        events += new
    for completion in completions:
        mine = [event for event in events if event.completion is completion]
        assert [event.token for event in mine] == completion.ids
        assert "".join(event.text for event in mine) == completion.text and HALF not in completion.text
        assert [event.finished for event in mine] == [False] * (len(mine) - 1) + [True]
        assert not any(text in completion.text for text in config.stop)
    assert any(sum(bool(event.text) for event in events if event.completion is c) > 3 for c in completions)
    cut = [c.text[: c.text.find(config.stop[1])] if config.stop[1] in c.text else c.text for c in free]
    assert [c.text for c in completions] == cut and completions[0].finish == "length" and cut[0].endswith(begun[0])
    assert completions[-1].finish == "stop" and len(cut[-1]) == 5


def test_json_lines_hold_ids_logprobs_and_the_reason(pair, capsys):
    ours, _ = pair
    command.write_texts(
        str(ours.folder), PROMPTS, SamplingConfig(max_tokens=6), 2, as_json=True, stream=True, allow_pickle=False
    )
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(x["prompt"], x["sample"]) for x in lines] == [(p, i) for p in PROMPTS for i in range(2)]
    for line in lines:
        assert set(line) == {"prompt", "sample", "text", "ids", "logprobs", "finish"}
        assert len(line["ids"]) == len(line["logprobs"]) <= 6 and line["finish"] in ("stop", "length")


def test_samples_in_training_leave_no_trace(pair):
    ours, _ = pair
    model, before = ours.model.train(), torch.get_rng_state()
    text = sample_text(model, ours.tokenizer, "fox", 10, seed=1)
    assert text.startswith("fox") and text == sample_text(model, ours.tokenizer, "fox", 10, seed=1)
    assert model.training and torch.equal(before, torch.get_rng_state())
    model.eval()


def test_prompts_that_are_not_unicode_are_refused(pair):
    with pytest.raises(UserError):
        pair[0].generate(["\udcff"])


@pytest.mark.parametrize("name", ["gpt2", "mistral", "qwen3_window", "nanochat"])
def test_logits_equal_transformers_with_padding_on_either_side(name, tmp_path):
    theirs = reference(name)
    theirs.save_pretrained(tmp_path)
    ours = lmkit.load(tmp_path)
    ids, right = inputs(theirs).values()
    for keep in (right, right.flip(1), torch.ones_like(right)):
        with torch.no_grad():
            want = theirs(ids, attention_mask=keep).logits
        got = ours.logits(ids.tolist(), keep.tolist())
        assert got.dtype == torch.float32 and got.shape == want.shape and not got.isnan().any()
        torch.testing.assert_close(got[keep.bool()], want[keep.bool()], rtol=0, atol=2e-5)


def test_save_gives_a_folder_that_transformers_reads_alike(pair, tmp_path):
    ours, theirs = pair
    ours.save(tmp_path / "copy")
    back = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "copy")
    assert (back.config.bos_token_id, back.config.pad_token_id) == (0, 2)
    ids = torch.arange(40).view(2, 20)
    assert torch.equal(back(ids).logits, theirs(ids).logits)
    assert hf.AutoTokenizer.from_pretrained(tmp_path / "copy").decode(ids[0]) == tokenizer().decode(ids[0])
    assert torch.equal(lmkit.load(tmp_path / "copy").logits(ids), ours.logits(ids))


def test_lists_of_end_tokens_are_read_and_saved(tmp_path):
    llama_folder(tmp_path / "a", eos=[5, 9])
    ours = lmkit.load(tmp_path / "a")
    assert ours.eos == {5, 9, 1}
    ours.save(tmp_path / "b")
    assert hf.GenerationConfig.from_pretrained(tmp_path / "b").eos_token_id == [5, 9]
    assert lmkit.load(tmp_path / "b").eos == ours.eos


@pytest.mark.parametrize(
    ("ids", "mask"),
    [([1, 2], None), ([[1, 999]], None), ([[-1]], None), ([[1] * 49], None), ([[1, 2]], [[1]]), ("x", None)],
)
def test_logits_of_what_does_not_fit_are_refused(pair, ids, mask):
    with pytest.raises(UserError, match="input_ids"):
        pair[0].logits(ids, mask)


def test_a_tokenizer_of_another_model_is_refused_and_none_is_said(tmp_path):
    reference("llama").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no tokenizer"):
        lmkit.load(tmp_path).generate(["a"])
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"ids? up to|up to id \d+, the model has 101"):
        lmkit.load(tmp_path)
