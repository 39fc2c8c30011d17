"""`lmkit finetune`: tables of labelled rows become a job, the job meets the loop, and what came of it is said."""

import json
import time
from pathlib import Path

from lmkit import config
from lmkit.data.palette import as_texts, fit_palette, holds_images, load_palette
from lmkit.data.splitting import limit, split
from lmkit.data.table_report import report
from lmkit.data.tables import Table, read_table
from lmkit.display import note
from lmkit.downstream import ClassifyConfig
from lmkit.errors import ModelError
from lmkit.files import write_json
from lmkit.finetune_recipe import FinetuneRecipe, expand
from lmkit.model.transformer import Transformer
from lmkit.pretrained import load
from lmkit.runs import Run, find_run, fresh_path, model_folder
from lmkit.solvers.classify import Classifier, split_labels
from lmkit.solvers.score_table import as_json, confusion_table, score_table, seeds_line
from lmkit.text.images import palette_tokenizer
from lmkit.training import checkpoints
from lmkit.training.ending import keep_average, run_to_end
from lmkit.training.finetune import Finetuning, build_finetuning, describe
from lmkit.units import show_count, show_seconds


def start(recipe: FinetuneRecipe, name: str, out: Path | None) -> int:
    """Train from the beginning, once for each seed. Returns the exit code."""
    path = fresh_path(out, name, "finetune")
    if recipe.seeds == 1:
        return _run(recipe, path, link=out is None)
    for seed in range(recipe.train.seed, recipe.train.seed + recipe.seeds):
        note(f"seed {seed}")
        train = recipe.train.model_copy(update={"seed": seed})
        code = _run(recipe.model_copy(update={"train": train, "seeds": 1}), path / f"seed-{seed}", link=False)
        if code:
            return code
    found = [json.loads((path / f"seed-{s}" / "scores.json").read_text())["scores"]
             for s in range(recipe.train.seed, recipe.train.seed + recipe.seeds)]  # fmt: skip
    print(seeds_line(found))
    write_json(path / "scores.json", {"seeds": found})
    return 0


def resume(path: Path) -> int:
    """Go on with a run where its newest whole checkpoint stands. Returns the exit code."""
    path = find_run(path)
    tree, lines = config.read_tree(path / "recipe.yaml")
    return _run(config.build(FinetuneRecipe, tree, lines, expand, str(path / "recipe.yaml")), path, goes_on=True)


def tables(recipe: FinetuneRecipe) -> tuple[Table, Table]:
    """What is learnt from and what is held out. Raises DataError."""
    data, task = recipe.data, recipe.task.name
    train = _read(data.train, recipe)
    if isinstance(data.validation, float | int):
        train, held_out = split(train, data.validation, recipe.train.seed, task)
    else:
        held_out = _read(data.validation, recipe)
    if isinstance(recipe.task, ClassifyConfig):
        train, held_out = (split_labels(t, recipe.task.kind, data.separator) for t in (train, held_out))
    if data.limit and data.limit < len(train.rows):
        note(f"data.limit: {data.limit:,} of {len(train.rows):,} training rows, drawn at random")
        train = limit(train, data.limit, seed=0)
    return train, held_out


def _read(sources: str | list[str], recipe: FinetuneRecipe) -> Table:
    named = [sources] if isinstance(sources, str) else sources
    table = read_table(named, recipe.task.name, recipe.data)
    chosen = ", ".join(f"{role} from `{column}`" for role, column in table.columns.items())
    note(f"reads {', '.join(named)} ({table.format}): {chosen or 'as it is'}; {len(table.rows):,} rows")
    for kind, n in table.problems.counts.items():
        note(f"left out: {n:,} {kind}, like {table.problems.examples[kind][0]}")
    return table


def _run(recipe: FinetuneRecipe, path: Path, link: bool = False, goes_on: bool = False) -> int:
    run = Run(path)
    if link:
        run.link_beside("latest")
    try:
        train, held_out = tables(recipe)
        if holds_images(train):
            train, held_out = _pictures(recipe, train, held_out, path / "tokenizer")
        f = build_finetuning(recipe, train, held_out, path)
        data = {"data": f.train.fingerprint, "held_out": f.held_out.fingerprint}
        if goes_on:
            _take_up(f, run, data)
        else:
            run.begin(config.dump(f.job.recipe), data)
            run.event("start", parameters=sum(f.job.model.num_parameters().values()))
        task = f.job.recipe.task.name
        note("\n".join([*report(f.train, f.held_out, task, f.lengths, f.max_length), *describe(f), *f.rendered()]))
        return _train(f, run)
    finally:
        run.close()


def _pictures(recipe: FinetuneRecipe, train: Table, held_out: Table, folder: Path) -> tuple[Table, Table]:
    """Images as texts, in the model's own words; of a new model in words learnt here, whose tokenizer goes to `folder`.
    Raises ModelError for a model that knows none."""
    if isinstance(recipe.model, str):
        palette = load_palette(model_folder(recipe.model))
        if palette is None:
            raise ModelError(f"{recipe.model}: reads texts, and the data holds images\n  → pretrain it on images first")
    else:
        palette = fit_palette([row["image"] for row in train.rows], recipe.data.pixels)
        palette_tokenizer(palette.words, recipe.model.family).save(folder, recipe.model.context)
        palette.save(folder)
    note(f"images   {palette.length} words each, of {len(palette.colours)}: {palette.size} pixels a side, in patches"
         f" of {palette.patch}")  # fmt: skip
    return as_texts(train, palette), as_texts(held_out, palette)


def _take_up(f: Finetuning, run: Run, data: dict[str, str]) -> None:
    """Raises ModelError where the data is not what it was."""
    before = config.parse_yaml((run.path / "environment.json").read_text(), "environment.json")
    if changed := [key for key, value in data.items() if before.get(key) != value]:
        raise ModelError(
            f"{run.path}: the {' and the '.join(changed)} changed since this run began\n"
            "  → restore the files, or start a new run"
        )
    if run.steps():
        folder = run.newest_whole(note)
        f.job.state = checkpoints.read(folder, f.job.model, f.job.optimizers, f.job.average)
    run.truncate_logs(f.job.state.step)
    run.event("resume", step=f.job.state.step)
    note(f"resuming {run.path} at step {f.job.state.step}")


def _train(f: Finetuning, run: Run) -> int:
    began, job = time.monotonic(), f.job
    code = run_to_end(job, run, "finetune")
    if code is not None:
        return code
    if job.recipe.checkpoint.average > 1:
        keep_average(job, run)
    state = job.state
    run.status("done", step=state.step, tokens=state.tokens, best=state.best, skipped=state.skipped)
    took = show_seconds(time.monotonic() - began)
    print(f"done in {took}: {state.step} steps, {show_count(state.tokens)} tokens")
    folder = run.path / ("best" if (run.path / "best").exists() else "latest")
    _scores(f, load(folder).model, run)
    print(f"  model  {folder}   (transformers: {job.model.config.spec.cls})")
    print(f"  next   lmkit predict {run.path} --data FILE --out predictions.jsonl")
    return 0


def _scores(f: Finetuning, model: Transformer, run: Run) -> None:
    """Of the model to use, on all rows held out, beside the baselines; kept in scores.json."""
    solver, table = f.solver, f.held_out
    outputs = solver.outputs(model, table, solver.examples(table))
    columns = {"model": solver.scores(table, outputs, True)}
    if isinstance(solver, Classifier) and getattr(f.job.recipe.task, "baseline", False):
        columns |= solver.baselines(f.train, table)
    print(score_table(str(run.path), columns, len(table.rows)))
    if isinstance(solver, Classifier) and (matrix := confusion_table(solver, table, outputs)):
        print(matrix)
    named = {name: as_json(scores) for name, scores in columns.items()}
    write_json(run.path / "scores.json", {"scores": named.pop("model"), "baselines": named, "rows": len(table.rows)})
