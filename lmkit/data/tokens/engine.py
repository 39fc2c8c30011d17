"""A store made by workers of datatrove (extra `scale`), each of which makes a part: processes of this machine, or those
of a Ray cluster whose machines share the folder."""

import os
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr, suppress
from functools import partial
from pathlib import Path
from shutil import rmtree
from threading import Event
from typing import Any, Literal

from lmkit.base.display import Meter, beside, note
from lmkit.base.errors import UserError
from lmkit.data.tokens.store import TokenStore
from lmkit.data.tokens.tokenize import begin_store, tokenize, tokenize_part
from lmkit.recipe.pretraining import DataConfig, TokenizerConfig

Engine = Literal["local", "ray"]
LOGS = ".workers"  # the folder in a store for what workers and datatrove write, until the store is done
POLL_SECONDS = 0.5


def tokenize_with_workers(
    data: DataConfig, tokenizer: TokenizerConfig, family: str, out: Path, workers: int, engine: Engine
) -> TokenStore:
    """Makes `out` the store of `data` with so many workers at a time: the same bytes as `tokenize` makes.

    engine: `local`, or `ray` for the cluster that RAY_ADDRESS names; without one, a cluster of this machine is started.
    What stops a worker stops `tokenize` too, which makes what the workers left, and says it. Raises UserError where a
    library is missing, and what `tokenize` raises."""
    executor = _executor(engine)
    counts = begin_store(data, tokenizer, family, out)
    parts = min(workers, counts.units - counts.done)
    if parts > 1:
        note(f"{parts} workers; what they write until the store is done is in {out / LOGS}")
        step = partial(_make_part, os.getcwd(), data, tokenizer, family, out.absolute())
        run = executor([step], tasks=parts, workers=parts, logging_dir=str(out.absolute() / LOGS), skip_completed=False)
        if counts.uncompared:
            with _counted("comparing", out, "candidates", counts.units):
                run.run()
        with _counted("tokenizing", out, "json", counts.units):
            run.run()
    store = tokenize(data, tokenizer, family, out)
    rmtree(out / LOGS, ignore_errors=True)
    return store


def _executor(engine: Engine) -> Callable[..., Any]:
    """Returns the class of datatrove that runs a pipeline. Raises UserError where a library is missing."""
    try:
        from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor

        _hush()
        if engine == "ray":
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
            import ray

            ray.init(ignore_reinit_error=True, log_to_driver=False)
            return RayPipelineExecutor
    except ImportError as error:
        raise UserError(f'--workers needs a library: {error}\n  → pip install "lmkit[scale]"') from None

    class QuietExecutor(LocalPipelineExecutor):
        """Leaves the terminal to the process that shows the progress of all."""

        def _run_for_rank(self, *ranks: int) -> Any:
            _hush()
            return super()._run_for_rank(*ranks)

    return QuietExecutor


def _hush() -> None:
    """Keeps datatrove from writing in this process."""
    from loguru import logger

    logger.disable("datatrove")


def _make_part(
    folder: str, data: DataConfig, tokenizer: TokenizerConfig, family: str, out: Path, _: Any, rank: int, parts: int
) -> None:
    """Is the step of the pipeline. folder: the working directory, from which the inputs are named."""
    with (
        (out / LOGS / f"part-{rank + 1}.log").open("a") as log,
        redirect_stderr(log),
        chdir(folder),
        suppress(UserError),
    ):
        tokenize_part(data, tokenizer, family, out, rank + 1, parts, cores=1)


@contextmanager
def _counted(title: str, out: Path, kind: str, total: int) -> Iterator[None]:
    """Shows in a `with` block how many units have their file of this kind."""

    def watch(meter: Meter, done: Event) -> None:
        while not done.wait(POLL_SECONDS):
            count = len(list(out.glob(f"unit-*.{kind}")))
            meter.update(count, f"{count:,} of {total:,} units")

    with Meter(title, total) as meter, beside(partial(watch, meter)):
        yield
