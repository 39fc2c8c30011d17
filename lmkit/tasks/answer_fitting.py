"""`lmkit finetune --task answer`: how words ask for relations, and from which score on an answer is right often enough.

Half of the questions are fitted to, the other half is scored. Within the first half words are counted on some questions
and scores made for others, some of which are worded otherwise: the scores are to hold for new wordings too."""

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lmkit.base.display import note
from lmkit.base.errors import UserError
from lmkit.base.files import write_json
from lmkit.base.gguf_file import is_gguf
from lmkit.base.runs import Run, model_folder
from lmkit.data.inventory import of_tables
from lmkit.data.tables.columns import trained_columns
from lmkit.data.tables.splitting import limit, split
from lmkit.data.tables.table import Table
from lmkit.evaluation.answers import coverage_curve, threshold_for_precision
from lmkit.evaluation.intervals import Estimate, means
from lmkit.kb.knowledge_base import KnowledgeBase, candidate
from lmkit.kb.lookup import SLOT, Matcher, Option, tokens
from lmkit.model.formats.model_card import CARD, write_card
from lmkit.model.transformer import Transformer
from lmkit.pretrained import load
from lmkit.recipe import recipe_file as recipes
from lmkit.recipe.finetuning import FinetuneRecipe
from lmkit.recipe.task_settings import TaskSettings
from lmkit.recipe.tasks import AnswerConfig
from lmkit.tasks.answer import Answered, Answering, Levels, Reader, graded, reader_for, sure
from lmkit.tasks.evaluate import read_labelled
from lmkit.tasks.task import score_table, scores_as_json

FOLDS = 5
HELD_OUT = 0.5  # of the questions, unless data.validation says otherwise
FEW = 20  # questions that are too few to fit a threshold to
SHOWN = (0.1, 0.25, 0.5, 0.75, 1.0)  # coverages in the table

Case = tuple[list[str], list[Option], list[bool]]  # words of a question, its options, which of them are right


def fit_answering(recipe: FinetuneRecipe, path: Path, latest: Path | None) -> int:
    """Fits, writes a run, and prints the scores of the questions held out. Raises UserError for what has no use
    here."""
    config, model = recipe.task, recipe.model
    assert isinstance(config, AnswerConfig)
    if not isinstance(model, str) or recipe.lora or recipe.freeze:
        raise UserError("answer takes a trained model as it is\n  → name one in `model`; leave out lora and freeze")
    if is_gguf(Path(model)):
        raise UserError(f"answer keeps its model's folder, and {model} is a file\n  → lmkit export {model} FOLDER")
    if "validation" not in recipe.data.model_fields_set:
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"validation": HELD_OUT})})
    train, held_out = _tables(recipe)
    with KnowledgeBase(config.kb) as kb:
        loaded = load(model)
        reader = reader_for(loaded, config)
        run = Run(path)
        run.named_latest = latest
        try:
            made_of = {"data": train.fingerprint, "held_out": held_out.fingerprint, "kb": kb.fingerprint}
            run.begin(recipes.dump(recipe), made_of | {"seed": recipe.train.seed} | {"files": of_tables(recipe)})
            task = fit(kb, train, config, reader, loaded.model)
            levels, matcher = task.levels._asdict(), task.matcher.as_json()
            facts = {"kb": str(Path(config.kb).resolve()), "fingerprint": kb.fingerprint, "levels": levels}
            settings = TaskSettings.of_recipe(
                recipe,
                fitted=facts | {"matcher": matcher},
                columns=trained_columns(config.name, recipe.data, train.columns),
            )
            _link_model(loaded.folder, run, settings)
            columns, curve = compare_answers(task, held_out, loaded.model)
            print(score_table(str(path), columns, len(held_out.rows)))
            print(curve)
            named = {name: scores_as_json(scores) for name, scores in columns.items()}
            write_json(path / "scores.json",
                       {"scores": named.pop("answers"), "baselines": named, "rows": len(held_out.rows)})  # fmt: skip
            write_card(path, loaded.model, recipe, f"{len(train.rows):,} questions to fit to.", {})
            run.status("done", step=0, tokens=None, best=None)
        finally:
            run.close()
    print(f"  next   lmkit generate {path} 'a question'   (lmkit eval {path} --data FILE scores other questions)")
    return 0


def _tables(recipe: FinetuneRecipe) -> tuple[Table, Table]:
    data, config = recipe.data, recipe.task
    columns = {"text": data.text, "target": data.target, "encoding": data.encoding}
    folder = model_folder(str(recipe.model))
    read = lambda names: read_labelled([names] if isinstance(names, str) else names, config, columns, True, folder)
    train = read(data.train)
    if isinstance(data.validation, float | int):
        train, held_out = split(train, data.validation, recipe.train.seed, "answer")
    else:
        held_out = read(data.validation)
    if not held_out.rows:
        raise UserError("data.validation is 0: no questions to score\n  → a share above 0, or files of their own")
    train = limit(train, data.limit, seed=0)
    note(f"{len(train.rows):,} questions to fit to, {len(held_out.rows):,} held out")
    known = {row["question"] for row in train.rows}
    if both := sum(row["question"] in known for row in held_out.rows):
        note(f"{both:,} of those held out are among those fitted to: the scores flatter")
    return train, held_out


def _link_model(folder: Path, run: Run, settings: TaskSettings) -> None:
    """Puts the fit beside the model's files: these are hard links, which cost no space and outlive the original, else
    copies."""

    def write(part: Path) -> None:
        for file in folder.iterdir():
            if file.is_file() and file.name != CARD:
                try:
                    os.link(file.resolve(), part / file.name)
                except OSError:
                    shutil.copy2(file, part / file.name)
        settings.write(part)  # in the place of the model's own, if it has one

    run.save(0, write, keep=1, best=False)


def fit(
    kb: KnowledgeBase, table: Table, config: AnswerConfig, reader: Reader | None, model: Transformer | None
) -> Answering:
    """Returns what is learnt from labelled questions, and tells what could not be reached."""
    golds = [row["answers"] for row in table.rows]
    cases = [_case(kb, row["question"], gold) for row, gold in zip(table.rows, golds, strict=True)]
    matcher, scores, right = fit_matcher(cases)
    lookup = threshold_for_precision(scores, right, config.precision) if len(scores) else None
    task = Answering(kb, matcher, Levels(lookup, None), config.passages, reader)
    hits = [ok for score, ok in zip(scores, right, strict=True) if lookup is not None and score >= lookup]
    share = len(hits) / (2 * len(table.rows))  # each question was scored twice
    result = f"{share:.0%} looked up, {sum(hits) / len(hits):.1%} of these right" if hits else "none sure"
    level = "" if lookup is None else f" from score {lookup:.2f} on"
    note(f"look up: {result}{level} ({config.precision:.0%} asked for)")
    if reader is None or model is None:
        return task
    rest = [i for i, row in enumerate(table.rows) if not sure(task.look_up(row["question"]), lookup)]
    rest = rest if len(rest) >= FEW else list(range(len(table.rows)))
    questions = [table.rows[i]["question"] for i in rest]
    read = reader.read(model, questions, [kb.search(question, config.passages) for question in questions])
    pairs = [(a.score, graded(golds[i], a)[0] == 1) for i, a in zip(rest, read, strict=True) if a.answer]
    sures, oks = [score for score, _ in pairs], [ok for _, ok in pairs]
    reading = threshold_for_precision(sures, oks, config.precision) if pairs else None
    hits = [ok for score, ok in pairs if reading is not None and score >= reading]
    result = f"{len(hits) / len(rest):.0%} read, {sum(hits) / len(hits):.1%} of these right" if hits else "none sure"
    note(f"read: {result}{'' if reading is None else f' from score {reading:.2f} on'} ({len(rest):,} questions)")
    task.levels = Levels(lookup, reading)
    return task


def _case(kb: KnowledgeBase, question: str, golds: Sequence[str]) -> Case:
    options = kb.options(question)
    return tokens(question), options, [_right(option, golds) for option in options]


def _right(option: Option, golds: Sequence[str]) -> bool:
    c = candidate(option, 0.0)
    return graded(golds, Answered(c.answer, "kb", "", 0.0, c.objects))[0] == 1


def fit_matcher(cases: Sequence[Case]) -> tuple[Matcher, list[float], list[bool]]:
    """Returns the matcher, with the score of the best option of each question that has any, and whether that option is
    right: twice, by words counted on other questions, and on other questions that are worded otherwise. As if half of
    the questions to come were worded like these, and half in new ways."""
    blocks: list[tuple[np.ndarray, list[bool]]] = []  # features of the options of a question
    for folds in ([i % FOLDS for i in range(len(cases))], _by_wording(cases)):
        for fold in range(FOLDS):
            matcher = Matcher.learn([case for case, f in zip(cases, folds, strict=True) if f != fold])
            mine = [case for case, f in zip(cases, folds, strict=True) if f == fold]
            blocks += [(matcher.features(words, options), right) for words, options, right in mine if options]
    final = Matcher.learn(cases)
    if len({ok for _, right in blocks for ok in right}) == 2:
        final.weights = _logistic(blocks)
    logits = [features @ np.array(final.weights) for features, _ in blocks]
    best = [int(z.argmax()) for z in logits]
    scores = [float(1 / (1 + np.exp(-z[i]))) for z, i in zip(logits, best, strict=True)]
    return final, scores, [right[i] for (_, right), i in zip(blocks, best, strict=True)]


def _logistic(blocks: Sequence[tuple[np.ndarray, list[bool]]]) -> list[float]:
    """Returns weights under which the best option of a question is the right one as often as its score says."""
    from sklearn.linear_model import LogisticRegression

    features, right = np.concatenate([f for f, _ in blocks]), np.concatenate([r for _, r in blocks])
    fitted = LogisticRegression(fit_intercept=False, C=10.0, max_iter=1000).fit(features, right)
    weights = fitted.coef_[0]
    top = [int((f @ weights).argmax()) for f, _ in blocks]  # the best of many is right less often than its score says
    z = np.array([[float(f[i] @ weights)] for (f, _), i in zip(blocks, top, strict=True)])
    ok = np.array([r[i] for (_, r), i in zip(blocks, top, strict=True)])
    if ok.all() or not ok.any():
        return [float(w) for w in weights]
    scale = LogisticRegression(C=10.0).fit(z, ok)
    slope, shift = float(scale.coef_[0, 0]), float(scale.intercept_[0])
    if slope <= 0:
        return [float(w) for w in weights]
    moved = slope * weights
    moved[0] += shift  # every option has 1 there
    return [float(w) for w in moved]


def _by_wording(cases: Sequence[Case]) -> list[int]:
    """Groups questions that differ in their subject alone."""
    wordings = []
    for words, options, right in cases:
        meant = next((o for o, ok in zip(options, right, strict=True) if ok), None)
        meant = meant or max(options, key=lambda o: o.end - o.start, default=None)
        wordings.append(" ".join([*words[: meant.start], SLOT, *words[meant.end :]] if meant else words))
    sizes, fold = Counter[int](), {}
    counts = Counter(wordings)
    for wording in sorted(counts, key=lambda w: (-counts[w], hashlib.sha256(w.encode()).digest())):
        fold[wording] = min(range(FOLDS), key=lambda f: (sizes[f], f))
        sizes[fold[wording]] += counts[wording]
    return [fold[wording] for wording in wordings]


def compare_answers(
    task: Answering, table: Table, model: Transformer | None
) -> tuple[dict[str, dict[str, Estimate]], str]:
    """Returns the scores of the ladder and of each of its rungs alone, and how right lookups are at several
    coverages."""
    golds = [row["answers"] for row in table.rows]
    questions = [row["question"] for row in table.rows]
    none = Answered("", "model", "", 0.0)
    looked = [task.look_up(question) for question in questions]
    alone = {"kb alone": [a or none for a in looked]}
    if task.reader and model is not None:
        passages = [task.kb.search(question, task.passages) for question in questions]
        alone["passages alone"] = task.reader.read(model, questions, passages)
        written = task.reader.write(model, questions)
        if any(a.answer for a in written):
            alone["model alone"] = written
    columns = {"answers": task.scores(table, task.outputs(model, table), True)}
    for name, outputs in alone.items():
        both = np.array([graded(g, a) for g, a in zip(golds, outputs, strict=True)]).reshape(-1, 2)
        columns[name] = means({"exact_match": both[:, 0], "f1": both[:, 1]})
    exact = [graded(g, a or none)[0] == 1 for g, a in zip(golds, looked, strict=True)]
    return columns, _curve([a.score if a else 0.0 for a in looked], exact)


def _curve(scores: Sequence[float], right: Sequence[bool]) -> str:
    thresholds, coverage, accuracy = coverage_curve(scores, right)
    lines = ["looked up   accuracy   from score"]
    for at in SHOWN:
        i = min(int(np.searchsorted(coverage, at)), len(coverage) - 1)
        lines.append(f"{coverage[i]:9.1%}{accuracy[i]:11.1%}{thresholds[i]:13.3f}")
    return "\n".join(dict.fromkeys(lines))
