"""Sends the rows of metrics.jsonl to a tracker of experiments, where the recipe names one.

A thread of its own does it, so that a slow tracker delays no step, and one that fails is told once and left alone: the
run directory holds all of it anyway. A resumed run goes on in the same run of the tracker."""

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from queue import Queue
from threading import Thread
from types import TracebackType
from typing import Any, Protocol, Self

from lmkit.base.display import note
from lmkit.base.errors import UserError
from lmkit.base.files import write_json
from lmkit.base.runs import Run
from lmkit.base.units import brief
from lmkit.recipe.pretraining import TrackerConfig
from lmkit.recipe.recipe_file import as_tree
from lmkit.training.job import Job

IDS = "tracker.json"  # in the run directory: what the tracker calls this run
ENDING_SECONDS = 30.0  # that the end of a run waits for what is not sent yet
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}


class Writer(Protocol):
    """A run in a tracker, which takes numbers and texts of steps in rising order."""

    def log(self, step: int, numbers: dict[str, float], texts: dict[str, str]) -> None: ...

    def close(self) -> None: ...


class Tracker:
    """The tracker of a run, as a context manager; it does nothing where the recipe names none."""

    def __init__(self, job: Job, run: Run):
        config = job.recipe.tracker
        self.name, self.queue = config.name, Queue[dict[str, Any] | None]()
        self.thread: Thread | None = None
        if config.name != "none" and job.world.first:
            recipe, step = as_tree(job.recipe), job.state.step
            open_writer = lambda: WRITERS[config.name](run.path, config.project, recipe, step)
            self.thread = Thread(target=self._send, args=(open_writer,), daemon=True)

    def __enter__(self) -> Self:
        if self.thread:
            self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.thread:
            self.queue.put(None)
            self.thread.join(ENDING_SECONDS)
            if self.thread.is_alive():
                note(f"{self.name}: does not answer; what it lacks is in metrics.jsonl")

    def log(self, row: dict[str, Any]) -> None:
        """Sends a row of metrics.jsonl, at some time soon."""
        if self.thread and self.thread.is_alive():
            self.queue.put(dict(row))

    def tell(self, step: int, sample: str) -> None:
        """Sends what the model wrote after a step."""
        self.log({"step": step, "sample": sample})

    def _send(self, open_writer: Callable[[], Writer]) -> None:
        try:
            writer = open_writer()
            while (row := self.queue.get()) is not None:
                numbers = {k: float(v) for k, v in row.items() if isinstance(v, int | float) and k != "step"}
                writer.log(row["step"], numbers, {k: v for k, v in row.items() if isinstance(v, str)})
            writer.close()
        except (Exception, SystemExit) as e:  # whatever a tracker does must not stop the run
            reason = brief(str(e) or type(e).__name__, 200)
            note(f"{self.name}: failed, and gets nothing more of this run; metrics.jsonl has all ({reason})")


def check_tracker(config: TrackerConfig) -> None:
    """Raises UserError where the package of the tracker is not there."""
    if config.name != "none" and find_spec(PACKAGES[config.name]) is None:
        raise UserError(f'tracker={config.name}: not installed\n  → pip install "lmkit[{config.name}]"')


class TensorBoard:
    """Writes event files into the run directory, which `tensorboard --logdir` shows."""

    def __init__(self, run: Path, project: str, recipe: dict[str, Any], step: int):
        from tensorboardX import SummaryWriter

        # What was sent of steps that are trained again is left out. A file of its own, even within the same second.
        self.events = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1, filename_suffix=f".{step}")
        if not step:
            self.events.add_text("recipe", f"```json\n{json.dumps(recipe, indent=1)}\n```")

    def log(self, step: int, numbers: dict[str, float], texts: dict[str, str]) -> None:
        for name, value in numbers.items():
            self.events.add_scalar(name, value, step)
        for name, text in texts.items():
            self.events.add_text(name, text, step)

    def close(self) -> None:
        self.events.close()


class WeightsAndBiases:
    """Sends to wandb, or with WANDB_MODE=offline writes into the run directory."""

    def __init__(self, run: Path, project: str, recipe: dict[str, Any], step: int):
        import wandb

        if os.environ.get("WANDB_MODE") != "offline" and not wandb.api.api_key:  # it would ask, and wait
            raise UserError("no key: `wandb login`, or WANDB_MODE=offline")
        known = _id(run, "wandb")
        settings = wandb.Settings(silent=True, console="off")
        self.run = wandb.init(
            project=project, name=run.resolve().name, id=known, resume="allow", dir=str(run), config=recipe,
            settings=settings,
        )  # fmt: skip
        _keep_id(run, "wandb", self.run.id)

    def log(self, step: int, numbers: dict[str, float], texts: dict[str, str]) -> None:
        self.run.log({**numbers, **texts}, step=step)

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """Sends to MLflow: where MLFLOW_TRACKING_URI says, else as its default is, into files here."""

    def __init__(self, run: Path, project: str, recipe: dict[str, Any], step: int):
        from mlflow.tracking import MlflowClient

        self.client, self.id = MlflowClient(), _id(run, "mlflow")
        if self.id is None:
            experiment = self.client.get_experiment_by_name(project)
            number = experiment.experiment_id if experiment else self.client.create_experiment(project)
            self.id = self.client.create_run(number, run_name=run.resolve().name).info.run_id
            self.client.log_dict(self.id, recipe, "recipe.json")
            _keep_id(run, "mlflow", self.id)

    def log(self, step: int, numbers: dict[str, float], texts: dict[str, str]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.id, [Metric(name, value, now, step) for name, value in numbers.items()])
        for name, text in texts.items():
            self.client.log_text(self.id, text, f"{name}/{step:08d}.txt")

    def close(self) -> None:
        self.client.set_terminated(self.id)


class Trackio:
    """Writes to trackio's database on this machine, which `trackio show` serves."""

    def __init__(self, run: Path, project: str, recipe: dict[str, Any], step: int):
        import trackio

        self.run = trackio.init(project=project, name=run.resolve().name, config=recipe, resume="allow", embed=False)

    def log(self, step: int, numbers: dict[str, float], texts: dict[str, str]) -> None:
        self.run.log({**numbers, **texts}, step=step)

    def close(self) -> None:
        self.run.finish()


WRITERS: dict[str, Callable[[Path, str, dict[str, Any], int], Writer]] = {
    "tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow, "trackio": Trackio,
}  # fmt: skip


def _id(run: Path, tracker: str) -> str | None:
    with suppress(OSError, ValueError, AttributeError):
        known = json.loads((run / IDS).read_text()).get(tracker)
        return known if isinstance(known, str) else None
    return None


def _keep_id(run: Path, tracker: str, name: str) -> None:
    write_json(run / IDS, {tracker: name})
