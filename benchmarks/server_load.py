"""Requests a second and their times at 1, 8 and 32 clients, and what many requests with hostile ones among them do.

    python benchmarks/server_load.py speed MODEL --requests 64 --tokens 16
    python benchmarks/server_load.py hostile MODEL --requests 10000

`speed` starts `lmkit serve`, the server of llama-cpp-python where that is installed (with the same weights in float32,
as `lmkit export` writes them), and a plain server around transformers' `generate`, one after the other. `hostile` sends
5% of what no server should mind: broken JSON, bodies of 10 MB, sockets that stop half-way, streams that are cut,
schemas that are none; and says which answers came, and how memory and rows are in the end."""

import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

PLAIN = """
import json, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
words, model = AutoTokenizer.from_pretrained(sys.argv[1]), AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
lock = threading.Lock()
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        ids = torch.tensor([words.encode(asked["prompt"])])
        with lock, torch.no_grad():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=asked["max_tokens"],
                                 min_new_tokens=asked["max_tokens"], do_sample=False, pad_token_id=0)
        body = json.dumps({"choices": [{"text": words.decode(out[0, ids.size(1):])}]}).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
    def do_GET(self): self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def started(command: list[str], port: int) -> subprocess.Popen[bytes]:
    """Starts a server, and waits until it takes connections."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(1200):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return process
        except OSError:
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(command[:4])} ended with {process.returncode}") from None
            time.sleep(0.1)
    raise SystemExit("the server does not answer")


async def asked(port: int, body: bytes, path: str = "/v1/completions", cut: int | None = None) -> int:
    """Sends a request. Returns the status, 0 for a connection that ended. cut: leaves after so many bytes of the
    answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        first = await reader.readline()
        await (reader.read() if cut is None else reader.read(cut))
        return int(first.split()[1]) if first else 0
    except (ConnectionError, IndexError):
        return 0
    finally:
        writer.close()


async def timed(port: int, clients: int, bodies: list[bytes]) -> tuple[float, list[float]]:
    """Sends all bodies by so many clients. Returns seconds, and those of each request."""
    waiting, each = iter(bodies), list[float]()

    async def client() -> None:
        for body in waiting:
            began = time.perf_counter()
            status = await asked(port, body)
            assert status == 200, status
            each.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return time.perf_counter() - began, each


def speed(model: str, requests: int, tokens: int) -> None:
    name = Path(model).name
    lines = [
        {"model": name, "prompt": f"Number {i} is", "max_tokens": tokens, "temperature": 0} for i in range(requests)
    ]
    bodies = [json.dumps(line).encode() for line in lines]
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "plain.py").write_text(PLAIN)
        ports = [free_port() for _ in range(3)]
        servers = {
            "lmkit": [sys.executable, "-m", "lmkit", "serve", model, "--port", str(ports[0]), "--max-rows", "32"]
        }
        export = [sys.executable, "-m", "lmkit", "export", model, f"{home}/gguf", "--to", "gguf", "--dtype", "f32"]
        if subprocess.run([sys.executable, "-c", "import llama_cpp.server.app"], capture_output=True).returncode == 0:
            subprocess.run(export, check=True, stdout=subprocess.DEVNULL)
            file = str(next(Path(home, "gguf").glob("*.gguf")))
            servers["llama_cpp.server"] = [
                sys.executable, "-m", "llama_cpp.server", "--model", file, "--port", str(ports[1]), "--n_threads",
                os.environ.get("OMP_NUM_THREADS", "2"), "--model_alias", name,
            ]  # fmt: skip
        servers["transformers"] = [sys.executable, f"{home}/plain.py", model, str(ports[2])]
        for (server, command), port in zip(servers.items(), ports if len(servers) == 3 else ports[::2], strict=True):
            process = started(command, port)
            try:
                asyncio.run(timed(port, 1, bodies[:2]))
                for clients in (1, 8, 32):
                    seconds, each = asyncio.run(timed(port, clients, bodies))
                    slow = statistics.quantiles(each, n=100)[98]
                    print(
                        f"{server:18} {clients:>3} clients  {requests / seconds:7.2f} requests/s   p50"
                        f" {statistics.median(each):6.2f} s   p99 {slow:6.2f} s", flush=True,
                    )  # fmt: skip
            finally:
                process.terminate()
                process.wait()


async def attack(port: int, name: str, requests: int) -> Counter[str]:
    """Sends many requests, one in twenty of them hostile. Returns how often each answer came to each kind."""
    rng, counts, turn = random.Random(0), Counter[str](), asyncio.Semaphore(24)
    write = {"model": name, "prompt": "over the", "max_tokens": 4}
    schema = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 7}}}}

    async def half_open() -> int:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
        await asyncio.sleep(rng.random())
        writer.close()
        return 0

    async def one(number: int) -> None:
        async with turn:
            kind = rng.choice(("json", "large", "half", "cut", "schema")) if number % 20 == 0 else "good"
            if kind == "json":
                status = await asked(port, b'{"model": ' + rng.randbytes(40))
            elif kind == "large":
                status = await asked(port, b" " * 10_000_000)
            elif kind == "half":
                status = await half_open()
            elif kind == "cut":
                status = await asked(port, json.dumps(write | {"max_tokens": 100, "stream": True}).encode(), cut=200)
            elif kind == "schema":
                talk = {"model": name, "messages": [{"role": "user", "content": "x"}]} | schema
                status = await asked(port, json.dumps(talk).encode(), "/v1/chat/completions")
            else:
                status = await asked(port, json.dumps(write | {"seed": number}).encode())
            counts[f"{kind} {status}"] += 1

    await asyncio.gather(*(one(i) for i in range(requests)))
    return counts


def memory(process: subprocess.Popen[bytes]) -> float:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def hostile(model: str, requests: int) -> None:
    port, name = free_port(), Path(model).name
    command = [sys.executable, "-m", "lmkit", "serve", model, "--port", str(port)]
    process = started(command, port)
    try:
        asyncio.run(attack(port, name, 1000))
        before = memory(process)
        began = time.perf_counter()
        counts = asyncio.run(attack(port, name, requests))
        took = time.perf_counter() - began
        time.sleep(2)
        print(f"{requests:,} requests in {took:.0f} s; memory {before:.0f} MB -> {memory(process):.0f} MB")
        print("\n".join(f"  {n:>6,}  {kind}" for kind, n in sorted(counts.items())))
        metrics = subprocess.run(
            ["curl", "-s", f"http://127.0.0.1:{port}/metrics"], capture_output=True, text=True
        ).stdout
        print("\n".join(f"  {line}" for line in metrics.splitlines() if line.startswith("lmkit_texts{")))
    finally:
        process.terminate()
        print(f"  exit code {process.wait()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["speed", "hostile"])
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=16)
    given = parser.parse_args()
    if given.kind == "speed":
        speed(given.model, given.requests, given.tokens)
    else:
        hostile(given.model, given.requests)


if __name__ == "__main__":
    main()
