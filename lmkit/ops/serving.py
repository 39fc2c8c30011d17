"""A server in this process, until it is told to stop."""

import logging
import signal
import socket
from collections.abc import Sequence

import uvicorn

from lmkit.base.display import note
from lmkit.base.errors import UserError
from lmkit.serve.app import Limits, create_app
from lmkit.serve.models import serve_all

LOCAL = ("127.0.0.1", "::1", "localhost")


def serve_models(models: Sequence[str], host: str, port: int, max_rows: int, limits: Limits, quant: str | None) -> None:
    """Serves models until SIGTERM or Ctrl-C; what is being written then is finished first.

    Prints a line with the address when requests are taken. Raises UserError for an address that is not free, and what
    `serve_all` raises."""
    served = serve_all(models, max_rows, quant)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=512)
    except OSError as e:
        raise UserError(f"{host}:{port}: {e.strerror or e}\n  → name another one: --port {port + 1}") from None
    if host not in LOCAL and limits.api_key is None:
        note(f"{host}: other machines can ask without a key\n  → LMKIT_API_KEY=... asks for one")
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S")
    logging.getLogger("lmkit.serve").setLevel(logging.INFO)
    for name, one in served.items():
        note(f"{name}: /v1/" + ", /v1/".join(one.abilities))
    print(f"http://{host}:{listening.getsockname()[1]}", flush=True)
    seconds = int(limits.seconds) + 1
    config = uvicorn.Config(
        create_app(served, limits), log_level="warning", access_log=False, timeout_graceful_shutdown=seconds,
        timeout_keep_alive=30, server_header=False,
    )  # fmt: skip
    # uvicorn finishes what runs, and then raises the signal once more, for whoever else waits for it: nobody does.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    uvicorn.Server(config).run(sockets=[listening])
