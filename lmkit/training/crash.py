"""A crash on purpose, for `lmkit doctor --resume`."""

import os
import signal
from typing import Any

from lmkit.training import step
from lmkit.training.job import Job


def kill_in_step(number: int) -> None:
    """Have this process end by SIGKILL in step `number` (from 1): after its weights have moved, before anything of that
    is written."""
    real = step.train_step

    def dying(job: Job, *rest: Any) -> Any:
        done = real(job, *rest)
        if job.state.step + 1 == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    step.train_step = dying  # type: ignore[assignment]
