"""`lmkit finetune`: tables of labelled rows become a job, the job meets the loop, and what came of it is said."""

import atexit
import csv
import json
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from lmkit.base.display import note, note_marked, waiting
from lmkit.base.errors import ModelError, UserError
from lmkit.base.files import write_atomic, write_json
from lmkit.base.runs import HELD_OUT, Run, find_run, fresh_path, going_on, model_folder, read_status, takes_latest
from lmkit.base.units import show_count, show_seconds
from lmkit.data.inventory import of_model, of_store, of_tables
from lmkit.data.tables.labels import label_kind
from lmkit.data.tables.quality import judged, redacted
from lmkit.data.tables.report import report
from lmkit.data.tables.splitting import fold, groups_held_out, limit, split
from lmkit.data.tables.table import Table, read_table
from lmkit.data.tables.task_tables import TABLES
from lmkit.images.palette import as_texts, fit_palette, holds_images, load_palette
from lmkit.images.tokens import palette_tokenizer
from lmkit.pretrained import load
from lmkit.recipe import recipe_file
from lmkit.recipe.finetuning import FinetuneRecipe, expand_finetuning, is_finetuning
from lmkit.tasks import answer_fitting
from lmkit.tasks.evaluate import row_records
from lmkit.tasks.table import TASKS
from lmkit.tasks.task import score_table, scores_as_json, seeds_line, texts, unknown_tokens
from lmkit.training import verdict
from lmkit.training.calibrated import calibrated_writer
from lmkit.training.distributed.world import ALONE, World
from lmkit.training.finetune import Finetuning, build_continued, build_finetuning, describe_finetuning
from lmkit.training.job import Job, Listeners
from lmkit.training.job import describe_pretraining as describe_text
from lmkit.training.run_shell import Prepared, card, execute, keep_average, meet, tell
from lmkit.training.step import expected_time

BINS = 24  # of the histogram of lengths


def start(recipe: FinetuneRecipe, name: str, out: Path | None, listeners: Listeners = ()) -> int:
    """Trains from the beginning, once for each seed. Returns the exit code."""
    world = meet(recipe)
    path = world.agree(fresh_path(out, name, "finetune"))
    if recipe.seeds == 1:
        return _run(recipe, path, path if takes_latest(out) else None, listeners=listeners)
    if world.first:
        path.mkdir(parents=True, exist_ok=True)
        write_atomic(path / "recipe.yaml", recipe_file.dump(recipe))
    return _seeds(recipe, path, path if takes_latest(out) else None, listeners)


def dry_run(recipe: FinetuneRecipe) -> None:
    """Prints what would happen, and starts nothing. Raises what `start` raises before its first step."""
    if not recipe.task.in_steps:
        raise UserError(f"{recipe.task.name} is fitted in one go\n  → leave out --dry-run")
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        prepare = _prepare if recipe.task.name in TASKS else _continued
        prepared = prepare(recipe, ALONE, run)
        prepared.introduce()
        job = prepared.job
        print("\n".join(expected_time(job, job.batch_rows * job.work.row_tokens)))


def resume(path: Path, listeners: Listeners = ()) -> int:
    """Goes on with a run, or several seeds' runs, where the newest whole checkpoint stands. Returns the exit code."""
    path = find_run(path)
    tree, lines = recipe_file.read_run(path / "recipe.yaml")
    if not is_finetuning(tree):
        raise UserError(f"{path} is a run of pretraining\n  → {going_on(path, 'pretrain')}")
    recipe = recipe_file.build_recipe(FinetuneRecipe, tree, lines, expand_finetuning, str(path / "recipe.yaml"))
    if recipe.seeds > 1:
        return _seeds(recipe, path, None, listeners)
    return _run(recipe, path, goes_on=True, listeners=listeners)


def _seeds(recipe: FinetuneRecipe, path: Path, latest: Path | None, listeners: Listeners) -> int:
    """Makes a run for each seed that has none yet, then prints their mean and spread. latest: as for `_run`."""
    seed_scores, world = [], meet(recipe)
    for seed in range(recipe.train.seed, recipe.train.seed + recipe.seeds):
        folder, train = path / f"seed-{seed}", recipe.train.model_copy(update={"seed": seed})
        world.wait()
        if not world.agree(_seed_scores(folder)):
            note(f"seed {seed}")
            if world.first and read_status(folder).get("state") == "done":  # its end is told again, with scores
                (folder / "status.json").unlink()
            begun = world.agree((folder / "recipe.yaml").exists())
            single = recipe.model_copy(update={"train": train, "seeds": 1})
            code = resume(folder, listeners) if begun else _run(single, folder, latest, listeners=listeners)
            if code:
                return code
        if scores := _seed_scores(folder):  # none where no row was held out
            seed_scores.append(scores)
    if seed_scores:
        print(seeds_line(seed_scores))
    if world.first:
        write_json(path / "scores.json", {"seeds": seed_scores})
    return 0


def _seed_scores(folder: Path) -> dict[str, Any] | None:
    """Returns the scores of the run of one seed; None where there are none yet, or their file is damaged, which is
    said."""
    file = folder / "scores.json"
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))["scores"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        note(f"{file} is damaged: that seed is scored again")
        return None


def tables(recipe: FinetuneRecipe) -> tuple[Table, Table]:
    """Returns the rows to learn from and the rows held out. Raises DataError."""
    data, task = recipe.data, recipe.task.name
    train = _read(data.train, recipe)
    if isinstance(data.validation, float | int):
        whole = train
        if data.fold:
            number, folds = map(int, data.fold.split("/"))
            train, held_out = fold(whole, number, folds, 0, task, data.group)
            note(f"data.fold {data.fold}: {len(held_out.rows):,} of {len(whole.rows):,} rows are held out")
        else:
            train, held_out = split(whole, data.validation, 0, task, data.group)
        if data.group:
            note(groups_held_out(whole, held_out, data.group))
    else:
        held_out = _read(data.validation, recipe, label_kind(train.rows))
    lines = list[str]()
    if data.quality.redact:
        train, lines = redacted(train)
        held_out, more = redacted(held_out)
        lines += more
    train, left_out = judged(train, held_out, task, data.quality)
    for line in lines + left_out:
        note(line)
    if data.limit and data.limit < len(train.rows):
        note(f"data.limit: {data.limit:,} of {len(train.rows):,} training rows, drawn at random")
        train = limit(train, data.limit, seed=0)
    return train, TASKS[task].check_rows(recipe.task, train, held_out)


def _read(sources: str | list[str], recipe: FinetuneRecipe, kind: str = "") -> Table:
    """Reads a table, and tells what was read. kind: of the labels of the training rows, where they are read already."""
    named = [sources] if isinstance(sources, str) else sources
    config = recipe.data if sources == recipe.data.train else recipe.data.model_copy(update={"weights": ()})
    table = read_table(named, recipe.task.name, config, kind=kind or getattr(recipe.task, "kind", "auto"))
    for line in table.described(named):
        note(line)
    return table


def _run(
    recipe: FinetuneRecipe, path: Path, latest: Path | None = None, goes_on: bool = False, listeners: Listeners = ()
) -> int:
    """Makes one run. latest: what `runs/latest` is to name once the run has begun; None leaves it as it was."""
    if not recipe.task.in_steps:
        return answer_fitting.fit_answering(recipe, path, latest)
    prepare = _prepare if recipe.task.name in TASKS else _continued
    prepared = lambda world, run: prepare(recipe, world, run)
    return execute(meet(recipe), path, "finetune", prepared, goes_on, latest, listeners=listeners)


def rebuilt(recipe: FinetuneRecipe, run: Run, world: World = ALONE) -> Finetuning:
    """Builds the job of a recipe, whose tokenizer lies in the run, or will lie there."""
    train, held_out = tables(recipe)
    folder = run.path if world.first else _copy_of_tokenizer(run.path)
    world.wait()
    if holds_images(train):
        train, held_out = _pictures(recipe, train, held_out, folder / "tokenizer")
    return build_finetuning(recipe, train, held_out, folder, world)


def _prepare(recipe: FinetuneRecipe, world: World, run: Run) -> Prepared:
    f = rebuilt(recipe, run, world)
    facts = {"data": f.train.fingerprint, "held_out": f.held_out.fingerprint} | _base(recipe)
    return Prepared(
        f.job, facts, lambda: of_tables(recipe), lambda: _introduce(f), lambda seconds: _tell(f, run, seconds)
    )


def _introduce(f: Finetuning) -> dict[str, Any]:
    """Tells what became of the rows, and shows the first of them as the model reads them. Returns it for the log."""
    tokenizer = f.job.tokenizer
    lines = report(f.train, f.held_out, f.job.recipe.task.name, f.lengths, f.task.max_length, f.cut)
    lines += unknown_tokens(tokenizer, f.learnt, f.task.head == "lm")
    if dropped := tokenizer.count_unspelt(texts(f.train)):
        lines.append(f"dropped: {dropped:,} bytes of the training texts, for which the tokenizer has no token")
    rows, edges = np.histogram(f.lengths, bins=BINS)
    lengths = {"rows": rows.tolist(), "edges": edges.round(1).tolist(), "limit": f.task.max_length}
    introduced = tell([*lines, *describe_finetuning(f)], lengths=lengths)
    for example in f.rendered():
        note_marked("example  ", example)
    return introduced


def _base(recipe: FinetuneRecipe) -> dict[str, str]:
    """Returns the fingerprint of the weights under adapters, which checkpoints do not hold."""
    return {"model": ", ".join(str(entry["sha256"]) for entry in of_model(recipe))} if recipe.lora else {}


def _copy_of_tokenizer(path: Path) -> Path:
    """Returns a folder of its own for each process but the first, which would otherwise read what the first is
    writing."""
    own_folder = Path(tempfile.mkdtemp(prefix="lmkit-"))
    atexit.register(shutil.rmtree, own_folder, ignore_errors=True)
    if (path / "tokenizer").is_dir():
        shutil.copytree(path / "tokenizer", own_folder / "tokenizer")
    return own_folder


def _pictures(recipe: FinetuneRecipe, train: Table, held_out: Table, folder: Path) -> tuple[Table, Table]:
    """Returns tables with images as texts, in the model's own words; for a new model in words learnt here, whose
    tokenizer goes to `folder`. Raises ModelError for a model that knows none."""
    if isinstance(recipe.model, str):
        palette = load_palette(model_folder(recipe.model))
        if palette is None:
            raise ModelError(f"{recipe.model}: reads texts, and the data holds images\n  → pretrain it on images first")
    else:
        palette = load_palette(folder)  # of a run that goes on
        palette = palette or fit_palette([row["image"] for row in train.rows], recipe.data.pixels)
        palette_tokenizer(palette.words, recipe.model.family).save(folder, recipe.model.context)
        palette.save(folder)
    note(f"images   {palette.length} words each, of {len(palette.colours)}: {palette.size} pixels a side, in patches"
         f" of {palette.patch}")  # fmt: skip
    return as_texts(train, palette), as_texts(held_out, palette)


def _continued(recipe: FinetuneRecipe, world: World, run: Run) -> Prepared:
    """Prepares continued pretraining, `task: lm`. What the model knew before is told beside what it knows after."""
    job, store = build_continued(recipe, run.path, world)

    def introduce() -> dict[str, Any]:
        introduced = tell(describe_text(job, store))
        if len(job.work.held_out) and not job.state.step:
            job.state.before = job.score()
        return introduced

    facts = {"data": store.fingerprint} | _base(recipe)
    files = lambda: of_store(store, recipe.data.train) + of_model(recipe)
    return Prepared(job, facts, files, introduce, lambda seconds: _tell_continued(job, run, seconds))


def _tell_continued(job: Job, run: Run, seconds: float) -> None:
    keep_average(job, run)
    before = job.state.before
    print(f"done in {show_seconds(seconds)}: {job.state.step} steps")
    if job.state.best and job.world.first:
        was = f", from {before['val_perplexity']:.2f}" if before else ""
        print(f"  best   step {job.state.best['step']:.0f}: perplexity {job.state.best['val_perplexity']:.2f}{was}")
        after = {k: {"value": v} for k, v in job.state.best.items() if k != "step"}
        write_json(run.path / "scores.json", {"before": before, "scores": after})
    lines = verdict.course(run.path, job.recipe.train.budget, "finetune", by_loss=True) if job.world.first else []
    if job.state.best and before and job.state.best["val_loss"] >= before["val_loss"]:
        lines.insert(0, "the model predicts the held-out texts no better than before")
    if lines:
        print(verdict.as_text(lines))
    card(job, run)
    run.status("done", verdict=lines, **job.progress)
    print(f"  report lmkit report {shlex.quote(str(run.path))}")
    print(f"  next   lmkit eval {shlex.quote(str(run.path))} --data FILE")


def _tell(f: Finetuning, run: Run, seconds: float) -> None:
    """Tells of training that has ended: the scores of its model, and what to do with it."""
    job = f.job
    keep_average(job, run)
    state = job.state
    print(f"done in {show_seconds(seconds)}: {state.step} steps, {show_count(state.tokens)} tokens")
    if not job.world.first:
        return
    if f.held_out.rows:
        _calibrate(f, run)
    folder = _model_to_use(run)
    verdicts = _scores(f, folder, run) if f.held_out.rows else []
    if (state.best or {}).get(
        job.metric
    ) != f.task.top:  # a model that is right on all rows has no use for a longer run
        by_loss = job.metric == "val_loss"
        verdicts += verdict.course(run.path, job.recipe.train.budget, "finetune", by_loss)
    elif job.share_of:
        verdicts.append(
            "all rows held out are right\n  → more of them, or harder ones, tell more: lmkit eval RUN --data FILE"
        )
    if verdicts:
        print(verdict.as_text(verdicts))
    card(job, run)
    run.status("done", verdict=verdicts, **job.progress)
    print(f"  model  {folder}   (transformers: {job.model.config.spec.cls})")
    print(f"  report lmkit report {shlex.quote(str(run.path))}")
    use = "predict {} --data FILE --out predictions.jsonl" if f.task.labels_rows else "chat {}"
    print(f"  next   lmkit {use.format(shlex.quote(str(run.path)))}")


def _model_to_use(run: Run) -> Path:
    return run.path / ("best" if (run.path / "best").exists() else "latest")


def _calibrate(f: Finetuning, run: Run) -> None:
    """Writes a copy of the model whose probabilities are calibrated on the rows held out, if the task asks for it; the
    link `best` then names it. Checkpoints stay as they are, so a run that goes on from one does it again."""
    if f.calibration or not f.task.calibrate:  # done before its output was cut off
        return
    folder, table = _model_to_use(run), f.held_out
    model = load(folder).model
    outputs = f.task.outputs(model, table, f.task.examples(table))
    temperature = f.task.temperature(table, outputs)
    if temperature is None:
        note("calibration: all held-out rows are right, so no temperature can be fitted, and the model stays as it is")
        return
    f.settings = f.settings.model_copy(update={"fitted": {"temperature": temperature}})
    write = calibrated_writer(folder, model.config, f.settings, temperature)
    run.save_beside("calibrated", f.job.state.step, write)
    ece = f.task.scores(table, outputs, False)["ece"].value
    f.calibration = {"temperature": temperature, "ece_before": ece}


def _scores(f: Finetuning, folder: Path, run: Run) -> list[str]:
    """Scores the model to use, which lies in `folder`, on all rows held out, beside the baselines. Writes scores.json,
    and of classes also classes.csv; returns what is to be said of the scores."""
    task, table, model = f.task, f.held_out, load(folder).model
    fitted, message = task.fit(model, table)
    if fitted:
        f.settings.write_fitted(folder, **fitted)
    with waiting(f"scoring {len(table.rows):,} rows held out"):
        outputs = task.outputs(model, table, task.examples(table))
        columns = {"model": task.scores(table, outputs, True)}
    with waiting("training the baselines"):
        columns |= task.baselines(f.train, table)
    scores = score_table(str(run.path), columns, len(table.rows))
    print("\n".join([scores, *task.stated(), *task.details(table, outputs)]))
    if f.calibration:
        f.calibration["ece_after"] = columns["model"]["ece"].value
        lines = "temperature {temperature:.3f}, calibration error (ECE) {ece_before:.4f} before, {ece_after:.4f} after"
        message = "; ".join(filter(None, [lines.format(**f.calibration), message]))
    if message:
        flatter = (
            f"  fitted on the {len(table.rows):,} held-out rows that are scored here, so the scores flatter a little"
        )
        note(f"{message}\n{flatter}\n  → `lmkit eval` on other rows")
    named = {name: scores_as_json(scores) for name, scores in columns.items()}
    facts: dict[str, Any] = {"scores": named.pop("model"), "baselines": named, "rows": len(table.rows)}
    facts["train_rows"] = len(f.train.rows)
    if fitted:
        facts["fitted"] = fitted | {"rows": "held out, as those of the scores"}
    if f.calibration:
        facts["calibration"] = f.calibration | {"rows": "held out, as those of the scores"}
    if classes := task.class_scores(table, outputs):
        facts["classes"] = scores_as_json(classes)
        with (run.path / "classes.csv").open("w", encoding="utf-8", newline="") as file:
            header = ("class", *next(iter(classes.values()))._fields)
            csv.writer(file).writerows([header, *((name, *score) for name, score in classes.items())])
    with waiting("answering a few prompts held out"):
        if answers := task.answered(model, table):
            facts["samples"] = answers
    write_json(run.path / "scores.json", facts)
    if task.labels_rows:
        with waiting("keeping what the model says of each row"):
            records = row_records(task, model, table, outputs, TABLES[f.job.recipe.task.name].learnt)
        write_atomic(run.path / HELD_OUT, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    weighs = hasattr(f.settings.task, "class_weights")
    weights = "\n  → task.class_weights=true gives rare labels more weight" if weighs else ""
    pretrained = isinstance(f.job.recipe.model, str)
    texts = task.texts_written(table, outputs) or [(row["answer"], [row["gold"]]) for row in answers]
    weak = verdict.beside_baselines(columns, task.metric, pretrained, task.top) if task.higher else []
    return [
        *verdict.never_predicted(task.never_predicted(table, outputs), len(table.rows), weights),
        *verdict.of_texts(texts, "" if weak else verdict.advice(pretrained)),
        *weak,
    ]
