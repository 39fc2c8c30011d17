"""The HTTP side of `lmkit serve`: paths, limits, errors, numbers for Prometheus."""

import asyncio
import base64
import hmac
import json
import logging
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from lmkit.base.errors import UserError
from lmkit.serve.models import Served, as_list
from lmkit.serve.openai import Reply, finished
from lmkit.serve.wire import MOST_TEXTS, ChatBody, CompletionBody, InputBody, RowsBody, WritingBody
from lmkit.serve.worker import Writing

LOG = logging.getLogger("lmkit.serve")
PAGE = Path(__file__).with_name("page.html")
GONE = 499  # the client left before it was answered (nginx's number)
B = TypeVar("B", bound=BaseModel)


@dataclass(frozen=True)
class Limits:
    """What a server takes on."""

    body: int = 1_000_000  # bytes
    tokens: int = 2048  # new tokens of a text
    waiting: int = 64  # texts that wait for a row, of each model
    seconds: float = 300.0  # that a request may take
    reading: float = 30.0  # seconds in which a body must have come
    api_key: str | None = None
    log_prompts: bool = False


class Refused(Exception):
    """A request that is not answered, and why."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error", retry: int | None = None):
        super().__init__(message)
        self.status, self.kind, self.retry = status, kind, retry

    def response(self) -> JSONResponse:
        headers = {} if self.retry is None else {"Retry-After": str(self.retry)}
        error = {"message": str(self), "type": self.kind, "param": None, "code": None}
        return JSONResponse({"error": error}, self.status, headers)


class Server:
    """The models and what is known of the requests for them."""

    def __init__(self, served: Mapping[str, Served], limits: Limits):
        self.served, self.limits, self.began = served, limits, int(time.time())
        self.registry = CollectorRegistry()
        self.requests = Counter("lmkit_requests", "Requests.", ("path", "status"), registry=self.registry)
        self.seconds = Histogram("lmkit_request_seconds", "Time to answer.", ("path",), registry=self.registry)
        self.tokens = Counter("lmkit_tokens", "Tokens.", ("model", "kind"), registry=self.registry)
        self.texts = Gauge("lmkit_texts", "Texts that are not finished.", ("model", "state"), registry=self.registry)

    # ---- what every request goes through

    def answering(self, answer: Callable[[Request], Awaitable[Response]], open_to_all: bool = False) -> Any:
        """Returns the handler of a path, which turns mistakes into responses, and counts and logs all of them."""

        async def handler(request: Request) -> Response:
            began = time.monotonic()
            try:
                if not open_to_all:
                    self._check_key(request)
                response = await answer(request)
            except Refused as e:
                response = e.response()
            except UserError as e:
                response = Refused(400, str(e)).response()
            except ClientDisconnect:
                response = Response(status_code=GONE)
            except Exception:
                LOG.exception("a request failed")
                response = Refused(500, "the server failed; its log says why", "server_error").response()
            path, took = request.url.path, time.monotonic() - began
            self.requests.labels(path, response.status_code).inc()
            self.seconds.labels(path).observe(took)
            facts = {"path": path, "status": response.status_code, "seconds": round(took, 4)}
            LOG.info(json.dumps(facts | getattr(request.state, "facts", {}), ensure_ascii=False))
            return response

        return handler

    def _check_key(self, request: Request) -> None:
        if self.limits.api_key is not None:
            given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
            if not hmac.compare_digest(given.encode(), self.limits.api_key.encode()):
                raise Refused(401, "the API key is missing or wrong", "authentication_error")

    async def body(self, request: Request, kind: type[B]) -> B:
        """Returns the body of a request. Raises Refused for one that is too large, too slow or wrong."""
        declared = request.headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > self.limits.body:
            raise self._too_large()
        read = bytearray()
        try:
            async with asyncio.timeout(self.limits.reading):
                async for part in request.stream():
                    read += part
                    if len(read) > self.limits.body:
                        raise self._too_large()
        except TimeoutError:
            raise Refused(408, f"the body did not come within {self.limits.reading:g} s") from None
        try:
            return kind.model_validate_json(bytes(read))
        except ValidationError as e:
            first = e.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "body"
            raise Refused(400, f"{where}: {first['msg']}") from None

    def _too_large(self) -> Refused:
        return Refused(413, f"the body has more than {self.limits.body:,} bytes")

    def model(self, name: str, path: str) -> Served:
        """Returns the model of a request. Raises Refused for one that is not served, or cannot do this."""
        if name not in self.served:
            raise Refused(404, f"no model {name!r}; there are {', '.join(self.served)}", "not_found_error")
        served = self.served[name]
        if path not in served.abilities:
            raise Refused(400, f"{name} does not answer /v1/{path}; it answers {', '.join(served.abilities)}")
        return served

    # ---- texts

    async def completions(self, request: Request) -> Response:
        return await self._write(request, await self.body(request, CompletionBody), "completions")

    async def chat(self, request: Request) -> Response:
        return await self._write(request, await self.body(request, ChatBody), "chat/completions")

    async def _write(self, request: Request, body: WritingBody, path: str) -> Response:
        served = self.model(body.model, path)
        assert served.worker is not None, "a model that writes has a worker"
        prompts = await run_in_threadpool(served.prompts, body)
        if len(prompts) * body.n > MOST_TEXTS:
            raise Refused(400, f"{len(prompts) * body.n} texts are asked for, of {MOST_TEXTS} that one request may")
        reply = Reply(served, body, prompts)
        asked = await run_in_threadpool(served.requests, body, prompts, self.limits.tokens, reply.alternatives)
        if served.worker.pending and served.worker.load.waiting + len(asked) > self.limits.waiting:
            raise Refused(429, f"{served.worker.load.waiting} texts wait already", "rate_limit_error", retry=1)
        if self.limits.log_prompts:
            request.state.facts = {"prompts": [served.loaded.needs_tokenizer().decode(ids) for ids in prompts]}
        writing = served.worker.submit(asked)
        if body.stream:
            return StreamingResponse(self._stream(reply, writing), media_type="text/event-stream")
        try:
            async with asyncio.timeout(self.limits.seconds):
                completions = await _unless_gone(request, finished(writing))
        except TimeoutError:
            raise Refused(504, f"not finished within {self.limits.seconds:g} s", "timeout_error") from None
        finally:
            self._ended(reply, writing)
        return JSONResponse(reply.whole(completions))

    async def _stream(self, reply: Reply, writing: Writing) -> AsyncIterator[str]:
        try:
            async with asyncio.timeout(self.limits.seconds):
                async for part in reply.parts(writing):
                    yield part
        except Exception as e:  # the status is sent already
            message = str(e) if isinstance(e, UserError) else f"the text ended early: {type(e).__name__}"
            LOG.warning(message)
            yield f"data: {json.dumps({'error': {'message': message, 'type': 'server_error'}})}\n\n"
        finally:  # also where the client left
            self._ended(reply, writing)

    def _ended(self, reply: Reply, writing: Writing) -> None:
        assert reply.served.worker is not None, "a model that writes has a worker"
        reply.served.worker.end(writing)
        for kind, number in reply.usage(writing.completions).items():
            if kind != "total_tokens":
                self.tokens.labels(reply.served.name, kind.removesuffix("_tokens")).inc(number)

    # ---- rows and vectors

    async def embeddings(self, request: Request) -> Response:
        body = await self.body(request, InputBody)
        served, texts = self.model(body.model, "embeddings"), as_list(body.input)
        if len(texts) > MOST_TEXTS:
            raise Refused(400, f"{len(texts)} texts are asked for, of {MOST_TEXTS} that one request may")
        vectors, read = await self._timed(run_in_threadpool(served.vectors, texts))
        if body.dimensions not in (None, len(vectors[0])):
            raise Refused(400, f"dimensions: the vectors of {body.model} have {len(vectors[0])}")
        packed = [base64.b64encode(struct.pack(f"<{len(v)}f", *v)).decode() for v in vectors]
        listed = packed if body.encoding_format == "base64" else vectors
        data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(listed)]
        usage = {"prompt_tokens": read, "total_tokens": read}
        return JSONResponse({"object": "list", "model": body.model, "data": data, "usage": usage})

    def rows(self, path: str) -> Callable[[Request], Awaitable[Response]]:
        """Returns what answers a path with rows: `rows`, or one row whose columns are fields of the body."""

        async def answer(request: Request) -> Response:
            body = await self.body(request, RowsBody)
            served = self.model(body.model, path)
            rows = [body.model_extra or {}] if body.rows is None else body.rows
            if body.rows is None and isinstance(texts := rows[0].get("input"), list):
                rows = [{"text": text} for text in texts]
            elif body.rows is None and "input" in rows[0]:
                rows = [{"text": rows[0].pop("input")} | rows[0]]
            if not rows or len(rows) > MOST_TEXTS:
                raise Refused(400, f"{len(rows)} rows are asked for, of 1 to {MOST_TEXTS} that one request may")
            results = await self._timed(run_in_threadpool(served.answers, rows))
            return JSONResponse({"object": "list", "model": body.model, "data": results})

        return answer

    async def _timed(self, work: Awaitable[Any]) -> Any:
        try:
            async with asyncio.timeout(self.limits.seconds):
                return await work
        except TimeoutError:
            raise Refused(504, f"not finished within {self.limits.seconds:g} s", "timeout_error") from None

    # ---- what is known

    async def models(self, request: Request) -> Response:
        frame = {"object": "model", "created": self.began, "owned_by": "lmkit"}
        data = [{"id": name} | frame | {"answers": served.abilities} for name, served in self.served.items()]
        return JSONResponse({"object": "list", "data": data})

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "models": list(self.served)})

    async def metrics(self, request: Request) -> Response:
        for name, served in self.served.items():
            if served.worker:
                for state, number in served.worker.load._asdict().items():
                    self.texts.labels(name, state).set(number)
        return Response(generate_latest(self.registry), media_type="text/plain; version=0.0.4")

    async def page(self, request: Request) -> Response:
        safe = {
            "Content-Security-Policy": "default-src 'self' 'unsafe-inline'; img-src data:",
            "X-Frame-Options": "DENY",
        }
        return Response(PAGE.read_bytes(), media_type="text/html; charset=utf-8", headers=safe)


async def _unless_gone(request: Request, work: Any) -> Any:
    """Returns the result of `work`. Raises ClientDisconnect where the client leaves before."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def create_app(served: Mapping[str, Served], limits: Limits) -> Starlette:
    """Returns the application. It ends the models' threads when it shuts down, after the last answer."""
    server = Server(served, limits)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        for one in served.values():
            if one.worker:
                one.worker.stop()

    posts = {
        "completions": server.completions, "chat/completions": server.chat, "embeddings": server.embeddings,
        **{path: server.rows(path) for path in ("classify", "tag", "qa", "translate")},
    }  # fmt: skip
    gets = {"/": server.page, "/health": server.health, "/metrics": server.metrics}
    return Starlette(
        lifespan=lifespan,
        routes=[
            *(Route(f"/v1/{path}", server.answering(answer), methods=["POST"]) for path, answer in posts.items()),
            *(Route(path, server.answering(answer, True), methods=["GET"]) for path, answer in gets.items()),
            Route("/v1/models", server.answering(server.models), methods=["GET"]),
        ],
    )
