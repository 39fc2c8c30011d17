"""Every objective through the real loop: it learns, a crash changes nothing, and transformers reads what it leaves."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from lmkit.base.errors import DataError, ModelError, UserError
from lmkit.base.order import rng_for
from lmkit.data.tokens.cache import open_tokens
from lmkit.data.tokens.store import TokenStore
from lmkit.recipe import recipe_file
from lmkit.recipe.defaults import expand_pretraining
from lmkit.recipe.pretraining import Recipe
from lmkit.training import checkpoints, pretraining_run, step
from lmkit.training.job import build_pretraining
from lmkit.training.step import passes_cost, read_share

SENTENCES = [
    "the cat sat on a mat.",
    "one red bird saw it!",
    "an old hill is over there.",
    "who fly over?",
    "it is so.",
]
SIZES = "hidden_size: 16, num_layers: 2, num_heads: 2, context: 32, dropout: 0.1, attention_dropout: 0.1"
OBJECTIVES = {
    "masked_lm": "family: bert, {sizes}}}\ntask: {{name: masked_lm, rate: 20%, whole_word: true}}",
    "documents": "family: modernbert, {sizes}, sliding_window: 8}}\ndata_masking",
    "ngrams": "family: electra, {sizes}, embedding_size: 8}}\ntask: {{name: masked_lm, max_ngram: 3, most: 4}}",
    "roberta": "family: roberta, {sizes}}}",
    "next_sentence": "family: bert, {sizes}}}\ntask: {{name: masked_lm, pairs: next_sentence}}",
    "sentence_order": "family: albert, {sizes}, embedding_size: 8}}\ntask: {{name: masked_lm, pairs: sentence_order}}",
    "span_corruption": "family: t5, {sizes}, gated: true, activation: gelu_tanh, tied: false, scaled_head: false}}",
    "ul2": "family: t5, {sizes}}}\ntask: {{name: span_corruption, denoisers: [{{density: 15%, mode: <extra_id_97>}},"
           " {{density: 50%, mean_span: 8}}, {{prefix: true, density: 25%, mode: <extra_id_99>}}]}}",
    "denoising": "family: bart, {sizes}}}\ntask: {{name: denoising, rotate: 50%, delete: 10%}}",
    "mbart": "family: mbart, {sizes}}}",
    "seq2seq": "family: transformer, {sizes}}}\ntask: {{name: seq2seq, label_smoothing: 0.1}}",
    "marian": "family: marian, {sizes}}}",
}  # fmt: skip
PAIRS = ("seq2seq", "marian")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    documents = [" ".join(SENTENCES[(i * 3 + j * j) % 5] for j in range(2 + i % 7)) for i in range(90)]
    Path("corpus.txt").write_text("\n".join(documents))
    Path("pairs.en").write_text("\n".join(documents))
    Path("pairs.up").write_text("\n".join(d.upper() for d in documents))
    return tmp_path


def recipe(name: str, budget: str = "8 steps") -> Path:
    """A recipe file for one objective."""
    model = OBJECTIVES[name].format(sizes=SIZES).replace("data_masking", "")
    data = 'data: {train: corpus.txt, validation: 20%, separator: "\\n"'
    if name in PAIRS:
        data = "data: {train: pairs.en, text: en, target: up, validation: 20%"
        model = model.replace("context: 32", "context: 128")
    masking = ", document_masking: true}" if name == "documents" else "}"
    kind = "wordpiece, vocab_size: 300" if name == "masked_lm" else "bytes"
    path = Path(f"{name}.yaml")
    path.write_text(
        f"model: {{{model}\n{data}{masking}\ntokenizer: {{type: {kind}}}\n"
        "optimizer: {name: adamw, lr: 5e-3}\nschedule: {warmup: 2}\nevaluate: {every: 4, sample: null}\n"
        f"train: {{budget: {budget}, batch: 256, micro_batch: 128}}\ncheckpoint: {{every: 3, keep: 3}}\n"
    )
    return path


def rows(run: str) -> list[dict]:
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_crashed_and_resumed_equals_straight(folder, monkeypatch, name):
    """With dropout on; the crash is in the second micro-batch of step 5."""
    path = recipe(name)
    assert pretraining_run.start(path, (), Path("straight")) == 0
    real, seen = step.autocast, [0]

    def crash(*settings):
        seen[0] += 1
        if seen[0] == 12:
            raise KeyboardInterrupt
        return real(*settings)

    with monkeypatch.context() as patch:
        patch.setattr(step, "autocast", crash)
        with pytest.raises(KeyboardInterrupt):
            pretraining_run.start(path, (), Path("crashed"))
    assert 0 < len(rows("crashed")) < 8
    assert pretraining_run.resume(Path("crashed")) == 0
    for file in ("model.safetensors", "training/optimizer.safetensors"):
        one, two = (Path(run, "checkpoints/step-00000008", file) for run in ("straight", "crashed"))
        assert one.read_bytes() == two.read_bytes(), file
    assert Path("straight/metrics.jsonl").read_bytes() == Path("crashed/metrics.jsonl").read_bytes()


@pytest.mark.parametrize("name", ["masked_lm", "next_sentence", "span_corruption", "denoising", "seq2seq"])
def test_transformers_finds_the_loss_that_was_logged(folder, name):
    """The last validation loss, recomputed from the checkpoint by transformers on the same corrupted rows."""
    import transformers

    assert pretraining_run.start(recipe(name), (), Path("run")) == 0
    job = made("run")
    task, held, first = job.work.scored, job.work.held_out, Path("run/checkpoints/step-00000008")
    auto = transformers.AutoModelForSeq2SeqLM if job.model.decoder else transformers.AutoModelForPreTraining
    theirs = auto.from_pretrained(first).eval()
    nats = count = 0.0
    for i in range(len(held)):
        batch = task.collate([task.prepare(held[i], rng_for(0, 0, i))])
        feed = {"decoder_input_ids": batch.targets} if batch.targets is not None else {}
        if batch.types is not None:
            feed["token_type_ids"] = batch.types
        with torch.no_grad():
            out = theirs(batch.tokens, **feed)
        logits = out["prediction_logits"] if "prediction_logits" in out else out["logits"]
        nats += float(torch.nn.functional.cross_entropy(logits[0], batch.labels[0], reduction="sum"))
        count += batch.counts["tokens"]
    assert nats / count == pytest.approx(rows("run")[-1]["val_loss"], abs=2e-5)
    if name == "seq2seq":
        assert rows("run")[-1]["loss"] > rows("run")[-1]["tokens_loss"]  # smoothed, and not


def made(run: str):
    """The job of a finished run, with its last weights."""
    path = Path(run, "recipe.yaml")
    tree, lines = recipe_file.read_tree(path)
    settled, store = pretraining_run.settle(recipe_file.build_recipe(Recipe, tree, lines, expand_pretraining))
    job = build_pretraining(settled, store)
    newest = sorted(Path(run, "checkpoints").iterdir())[-1]
    job.state = checkpoints.read(newest, job.model, job.optimizers, job.average)
    return job


@pytest.mark.parametrize("name", OBJECTIVES)
def test_micro_batches_change_no_gradient(folder, name, monkeypatch):
    """Sums over the whole batch, divided once: rows of different lengths and counts weigh what they should. Nor does
    padding, of which a step in bf16 has more on a CPU."""
    grads = []
    for micro, multiple in ((256, 1), (128, 1), (128, 16)):
        monkeypatch.setattr(step, "passes_cost", lambda *_, multiple=multiple: (64, multiple))
        tree, lines = recipe_file.read_tree(recipe(name))
        tree["train"]["micro_batch"] = micro
        tree["model"] |= {"dropout": 0, "attention_dropout": 0, "activation_dropout": 0}
        settled, store = pretraining_run.settle(recipe_file.build_recipe(Recipe, tree, lines, expand_pretraining))
        job = build_pretraining(settled, store)
        batches = read_share(job, 0).batches
        counts = {k: sum(b.counts[k] for b in batches) for k in batches[0].counts}
        job.model.eval()
        job.parallel.start_gradient()
        for batch in batches:
            for key, term in job.work.objective.loss(job.model, batch).sums.items():
                (term / counts[key]).backward(retain_graph=True)
        grads.append([p.grad for p in job.model.parameters()])
    assert len(batches) > 1 and not batches[0].tokens.size(1) % 16
    for a, b, c in zip(*grads, strict=True):
        assert (a is None) == (b is None) == (c is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-6)


def test_rows_never_become_longer_than_the_context():
    assert passes_cost(torch.device("cpu"), "bf16", 512)[1] == 16
    assert passes_cost(torch.device("cpu"), "bf16", 197)[1] == 1
    assert passes_cost(torch.device("cpu"), "fp32", 512)[1] == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["masked_lm", "span_corruption"])  # a head tied to the embedding, and one apart
def test_what_saves_time_in_a_step_changes_no_gradient(folder, name, precision, monkeypatch):
    """Of the second step: what the first one left in memory is not in it."""
    tree, lines = recipe_file.read_tree(recipe(name))
    tree["train"] |= {"micro_batch": 128, "precision": precision}
    settled, store = pretraining_run.settle(recipe_file.build_recipe(Recipe, tree, lines, expand_pretraining))
    job = build_pretraining(settled, store)
    off, grads = torch.amp.GradScaler(enabled=False), []
    for plain in (False, True):
        if plain:
            monkeypatch.setattr(step, "keeping_casts", lambda *_: nullcontext())
            assert job.model.embedding.sparse
            job.model.embedding.sparse = False
        for number in (0, 1):
            job.parallel.clear_gradient()
            torch.manual_seed(number)
            share = read_share(job, number)
            step._gradient(job, share, off, False)
        assert share.passes > 1
        grads.append([p.grad.clone() for p in job.model.parameters() if p.grad is not None])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["masked_lm", "span_corruption", "denoising", "seq2seq", "sentence_order"])
def test_every_objective_learns(folder, name):
    """The corpus has five sentences: what is left to guess after 60 steps is little."""
    path = recipe(name, "60 steps")
    assert (
        pretraining_run.start(path, ("model.dropout=0", "model.attention_dropout=0", "optimizer.lr=0.01"), Path("run"))
        == 0
    )
    log = rows("run")
    key = "tokens_loss" if "tokens_loss" in log[0] else "loss"
    assert log[-1][key] < 0.75 * log[0][key]


def test_packed_documents_cost_what_they_cost_apart(folder):
    """With document_masking the loss of a packed row is that of its documents, one by one."""
    job = built("documents")
    model, task = job.model.eval(), job.work.objective
    example = task.prepare(job.work.rows[3], rng_for(0, 0, 3))
    assert example["segments"].max() > 0
    with torch.no_grad():
        together = task.loss(model, task.collate([example])).sums["tokens"]
        apart = 0.0
        for n in range(example["segments"].max() + 1):
            one = {k: example[k][example["segments"] == n] for k in ("tokens", "labels", "segments")}
            if (one["labels"] >= 0).any():
                apart += task.loss(model, task.collate([example | one])).sums["tokens"]
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)


def built(name: str, *overrides: str):
    settled, store = pretraining_run.settle(
        recipe_file.load_recipe(Recipe, recipe(name), overrides, expand_pretraining)
    )
    return build_pretraining(settled, store)


def test_rows_without_padding_take_the_path_without_a_mask(folder):
    batch = read_share(built("masked_lm"), 0).batches[0]
    assert batch.keep is None and batch.segments is None
    masked = {int((row >= 0).sum()) for row in batch.labels}
    assert masked <= {5, 6}  # 20% of 32, whole words: at most 6
    pairs = read_share(built("seq2seq"), 0).batches
    assert [b.tokens.size(1) for b in pairs] == sorted((b.tokens.size(1) for b in pairs), reverse=True)


def test_next_sentence_labels_are_balanced_and_true(folder):
    """Label 1: B is from another document. Label 0: A and B stand one after the other in the text."""
    job = built("next_sentence", "task.short_pairs=0", "task.rate=1%")
    text = {
        tuple(d) for d in (job.work.rows.split.document(i).tolist() for i in range(job.work.rows.split.num_documents))
    }
    labels = []
    for i in range(len(job.work.rows)):
        for epoch in range(8):
            example = job.work.objective.prepare(job.work.rows[i], rng_for(0, epoch, i))
            labels.append(example["label"])
            assert len(example["tokens"]) <= 32 and example["types"].tolist() == sorted(example["types"])
            whole = example["tokens"].copy()
            whole[example["labels"] >= 0] = example["labels"][example["labels"] >= 0]
            sep, end = [n for n in range(len(whole)) if whole[n] == whole[-1]]
            joined = tuple(whole[1:sep].tolist() + whole[sep + 1 : end].tolist())
            if example["label"] == 0 and len(joined) < 29:
                assert any(joined == d[k : k + len(joined)] for d in text for k in range(len(d)))
    assert 0.4 < sum(labels) / len(labels) < 0.6


def test_sentence_order_swaps_half_and_leaves_single_sentences_out(folder):
    Path("corpus.txt").write_text("\n".join(f"{i} alone.\n{i} here. then there." for i in range(60)))
    job = built("sentence_order", "task.short_pairs=0", "data.validation=20%")
    assert job.work.rows.num_single > 0
    labels = [
        job.work.objective.prepare(job.work.rows[i], rng_for(0, 0, i))["label"] for i in range(len(job.work.rows))
    ]
    assert set(labels) == {0, 1}


def test_damaged_sources_never_outgrow_the_context(folder):
    """Spans of no length add masks: with a mean of 1 every other row would be too long."""
    task = (job := built("denoising", "task.mean_span=1", "task.rotate=0", "task.delete=0")).work.objective
    for epoch in range(4):
        for i in range(len(job.work.rows)):
            example = task.prepare(job.work.rows[i], rng_for(0, epoch, i))
            assert len(example["source"]) <= 32 == len(example["target"])


def test_robertas_positions_waste_no_rows(folder):
    """They count from the padding token's id, which is therefore low."""
    job = built("roberta")
    assert job.model.encoder.inputs.position.weight.shape == (32 + 1, 16)
    assert job.model.config.position_padding_id == job.special["pad_token_id"] == 0


def test_electra_without_narrow_embeddings_is_read_back(folder):
    import transformers

    Path("electra.yaml").write_text(recipe("ngrams").read_text().replace(", embedding_size: 8", ""))
    assert pretraining_run.start(Path("electra.yaml"), ("train.budget=1 steps",), Path("run")) == 0
    _, report = transformers.ElectraForMaskedLM.from_pretrained("run/latest", output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"]


def test_one_document_gives_no_next_sentences(folder):
    Path("one.txt").write_text(" ".join(SENTENCES * 200))
    with pytest.raises(DataError, match="there is one"):
        built("next_sentence", "data.separator=null", "data.train=one.txt", "data.validation=corpus.txt")


def test_too_little_held_out_text_is_said(folder, capsys):
    Path("short.txt").write_text("too short.")
    assert (
        pretraining_run.start(recipe("roberta"), ("data.validation=short.txt", "train.budget=2 steps"), Path("run"))
        == 0
    )
    said = capsys.readouterr()
    assert "no validation" in said.err and "run/latest" in said.out


def test_span_corruption_fills_the_context_exactly(folder):
    job = built("span_corruption")
    batch = read_share(job, 0).batches[0]
    assert batch.tokens.size(1) == 32 and batch.keep is None  # no padding at all
    sentinel = job.work.objective.make.sentinels
    assert (batch.tokens == sentinel[0]).sum(1).tolist() == [1] * len(batch.tokens)
    assert batch.labels[:, 0].tolist() == [sentinel[0]] * len(batch.labels)
    assert set(batch.targets[:, 0].tolist()) == {job.special["pad_token_id"]}  # what the decoder starts from


@pytest.mark.parametrize(("name", "change", "error", "says"), [
    ("masked_lm", "task=causal_lm", UserError, "does not fit model.family bert"),
    ("masked_lm", "task.denoisers=[]", UserError, "unknown key `task.denoisers`"),
    ("masked_lm", "task.name=masked_ml", UserError, "did you mean `masked_lm`"),
    ("masked_lm", "task.rate=120%", UserError, "between 0 and 1"),
    ("masked_lm", "task.split=[0.5, 0.1, 0.1]", UserError, "add up to 1"),
    ("roberta", "task.pairs=next_sentence", UserError, "head `pairs` does not exist in roberta"),
    ("next_sentence", "data.document_masking=true", UserError, "document_masking fits packed rows"),
    ("seq2seq", "data.target=null", UserError, "data.target is missing"),
    ("denoising", "data.target=up", UserError, "does not read"),
    ("masked_lm", "model.family=t5", UserError, "does not fit model.family t5"),
    ("ul2", "task.denoisers=[{mode: '[NLU]'}]", UserError, "is no token"),
    ("span_corruption", "train.precision=fp16", UserError, "fp16"),
    ("span_corruption", "model.scaled_head=true", UserError, "go together"),
    ("masked_lm", "model.head=token", UserError, "leave both out"),
    ("masked_lm", "evaluate.sample=hello", UserError, "has no .MASK. to fill in"),
], ids=lambda v: v if isinstance(v, str) else "")  # fmt: skip
def test_what_does_not_fit_together_is_refused(folder, name, change, error, says):
    with pytest.raises(error, match=says.replace("(", r"\(")):
        built(name, change)


def _store(task: str) -> TokenStore:
    r = recipe_file.load_recipe(Recipe, recipe(task), (), expand_pretraining)
    return open_tokens(r.data, r.tokenizer, r.model.family)


def test_a_tokenizer_without_what_the_task_needs_is_named(folder):
    store = _store("seq2seq")
    Path("lone").mkdir()
    for task, says in (("masked_lm", "no mask token"), ("span_corruption", "no sentinels")):
        with pytest.raises((ModelError, UserError), match=says):
            built(task, f"tokenizer.path={store.tokenizer_path}")


def test_a_store_of_single_texts_has_no_pairs(folder):
    store = _store("roberta")
    assert isinstance(store, TokenStore)
    with pytest.raises(DataError, match="holds single texts"):
        built("seq2seq", f"data.train={store.path}")
