"""How a run ends: trained, stopped with a checkpoint, or by an error; its status says which."""

from lmkit.display import note
from lmkit.errors import STOPPED_RESUMABLE
from lmkit.runs import Run
from lmkit.training import checkpoints, loop
from lmkit.training.job import Job


def run_to_end(job: Job, run: Run, verb: str) -> int | None:
    """Train. Returns an exit code where there is nothing left to do, None where training ended and its end is to be
    told, by now or before a kill kept it from being told. verb: the command that resumes it."""
    if job.state.step and loop.finished(job):
        if run.read_status().get("state") != "done":
            return None
        print(f"{run.path} is done: step {job.state.step}, nothing left to train")
        return 0
    run.status("running", step=job.state.step)
    try:
        ended = loop.train(job, run)
    except BaseException as e:
        run.status("failed" if isinstance(e, Exception) else "interrupted", step=job.state.step, reason=str(e)[:500])
        raise
    if ended == "done":
        return None
    run.status("stopped", reason=ended, **job.progress)
    print(f"stopped by {ended} at step {job.state.step}, saved\n  → lmkit {verb} --resume {run.path}")
    return STOPPED_RESUMABLE


def keep_average(job: Job, run: Run) -> None:
    """The mean of the last checkpoints, kept as one more if it scores better than the best."""
    folders = run.steps()[-job.recipe.checkpoint.average :]
    checkpoints.average_models(folders, job.model)
    scores = job.score()
    note(f"average of the last {len(folders)} checkpoints: {job.metric} {scores[job.metric]:.4f}")
    if job.state.best is not None and job.better(scores):
        folder = run.path / "average"
        folder.mkdir(exist_ok=True)
        checkpoints.write_model(folder, job.model, job.tokenizer, job.special)
        run.mark_best(folder)
        job.state.best = {"step": job.state.step} | scores
