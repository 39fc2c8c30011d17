"""`lmkit doctor`: whether this machine is fit for training, and whether a recipe resumes exactly on it."""

from pathlib import Path
from typing import Annotated

import typer

from lmkit.base.errors import UserError
from lmkit.commands.app import app
from lmkit.commands.options import Json, Overrides


@app.command(epilog="Example: lmkit doctor")
def doctor(
    overrides: Overrides = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="RECIPE", help="Instead: prove that a run by this recipe resumes exactly."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Of that proof; half way the run is killed. Default: 6.", min=2)
    ] = None,
    tokens: Annotated[
        Path | None,
        typer.Option("--tokens", metavar="STORE", help="Instead: read a token store whole, by its checksums."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check this machine, and say what to do about what is wrong. Exit code 1: something is.

    With --resume RECIPE [KEY=VALUE]...: train by it for a few steps, straight and again with a kill -9 in between, in a
    temporary folder, and compare weights, optimizer state and metrics byte for byte. Exit code 1: they differ.
    """
    if tokens is not None:
        from lmkit.data.tokens.store import TokenStore

        store = TokenStore(tokens)
        store.verify()
        print(f"{tokens}: every byte is as it was written ({store.fingerprint[:12]})")
        return
    if resume is None:
        if overrides or steps:
            raise UserError("KEY=VALUE and --steps belong to a recipe\n  → lmkit doctor --resume RECIPE KEY=VALUE")
        from lmkit.ops import doctor as checks

        raise typer.Exit(checks.check_machine(as_json))
    from lmkit.ops import resume_proof

    raise typer.Exit(resume_proof.prove_resume(resume, tuple(overrides or ()), steps or 6, as_json))
