"""`lmkit push`: uploads a model folder to the Hugging Face hub, where a person asks for it."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from lmkit.base.errors import UserError
from lmkit.base.runs import model_folder
from lmkit.commands.app import app


@app.command(epilog="Example: lmkit push runs/demo/best NAME/demo")
def push(
    folder: Annotated[str, typer.Argument(help="A run, or the folder of an export.", show_default=False)],
    repo: Annotated[str, typer.Argument(help="USER/NAME on the hub; made if it is not there.", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask first, as in scripts.")] = False,
) -> None:
    """Upload the files of a model folder to the Hugging Face hub."""
    source = Path(folder) if any(Path(folder).glob("*.gguf")) else model_folder(folder)
    files = sorted(path.name for path in source.iterdir() if path.is_file())
    if not yes:
        if not sys.stdin.isatty():
            raise UserError("nothing is uploaded without a question\n  → --yes answers it beforehand")
        typer.confirm(f"Upload {', '.join(files)} from {source} to https://huggingface.co/{repo}?", abort=True)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        api = HfApi()
        api.create_repo(repo, exist_ok=True)
        print(api.upload_folder(repo_id=repo, folder_path=source, allow_patterns=files))
    except (HfHubHTTPError, HFValidationError, OSError) as e:
        raise UserError(f"{repo}: not uploaded: {e}\n  → `hf auth login` says who you are") from None
