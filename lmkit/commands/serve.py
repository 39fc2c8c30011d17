"""`lmkit serve`: models over HTTP, as OpenAI's API has it, with a page to try them."""

import os
from typing import Annotated

import typer

from lmkit.base.errors import UserError
from lmkit.commands import options
from lmkit.commands.app import app

KEY = "LMKIT_API_KEY"


@app.command(epilog="Example: lmkit serve runs/demo, then open http://127.0.0.1:8000")
def serve(
    models: Annotated[list[str], typer.Argument(help="Runs or folders; NAME=FOLDER gives one another name.")],
    host: Annotated[str, typer.Option("--host", help="Address; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port.", min=0, max=65535)] = 8000,
    max_rows: Annotated[int, typer.Option("--max-rows", help="Texts that each model writes at a time.", min=1)] = 16,
    max_waiting: Annotated[int, typer.Option("--max-waiting", help="Texts that may wait for a row.", min=0)] = 64,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="New tokens of a text at most.", min=1)] = 2048,
    max_body: Annotated[int, typer.Option("--max-body", help="Bytes of a request at most.", min=1000)] = 1_000_000,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds that a request may take.", min=1)] = 300.0,
    quant: options.Quant = None,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="The log holds the prompts.")] = False,
) -> None:
    """Answer requests over HTTP: completions, chat, embeddings, and classify, tag, qa and translate of fine-tuned
    models. The page at / tries them.

    With LMKIT_API_KEY in the environment, requests must carry that key."""
    try:
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise UserError('a server needs starlette and uvicorn\n  → pip install "lmkit[serve]"') from None
    from lmkit.ops.serving import serve_models
    from lmkit.serve.app import Limits

    limits = Limits(max_body, max_tokens, max_waiting, timeout, api_key=os.environ.get(KEY), log_prompts=log_prompts)
    serve_models(models, host, port, max_rows, limits, quant)
