"""The HTTP interface: routes, and the guard in front of them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import msgspec
import numpy as np
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import Message, Receive, Scope, Send

from deploykit.commands.serve import kserve
from deploykit.commands.serve.admission import read_body
from deploykit.commands.serve.openapi import openapi_document
from deploykit.commands.serve.pages import docs_page, home_page
from deploykit.commands.serve.refused import GoneError, RefusedError
from deploykit.commands.serve.served import ServedModel
from deploykit.commands.serve.service import Service
from deploykit.commands.serve.uploads import FORM, JSON, read_uploads
from deploykit.errors import DeploykitError
from deploykit.images.decode import Failure
from deploykit.system.progress import Note

#: Nobody needs a key to see that the server is there, and how to ask it.
_OPEN = frozenset({"/", "/docs", "/openapi.json", "/v2/health/live", "/v2/health/ready"})
#: JSON of this size is parsed at once; more would keep others waiting.
_SMALL_JSON = 64 * 2**10
_PAGE_HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_CLIENT_GONE = 499


class App:
    """The ASGI application.

    Args:
        service: What answers.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        model = "/v2/models/{name}"
        versions = f"{model}/versions/{{version}}"
        self._routes = Router(
            [
                Route("/", self._home),
                Route("/docs", self._docs),
                Route("/openapi.json", self._openapi),
                Route("/metrics", self._metrics),
                Route("/predict", self._predict, methods=["POST"]),
                Route("/v2", self._server),
                Route("/v2/health/live", self._live),
                Route("/v2/health/ready", self._ready),
                *(
                    route
                    for path in (model, versions)
                    for route in (
                        Route(path, self._model),
                        Route(f"{path}/ready", self._model_ready),
                        Route(f"{path}/infer", self._infer, methods=["POST"]),
                    )
                ),
            ],
            redirect_slashes=False,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, within the time that it has, whatever happens."""
        start = time.perf_counter()
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._service.is_draining:
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        scope["app"] = self  # by which the router knows to raise what it does not find
        try:
            answer = await self._guarded(partial(self._routes, scope, receive, sending), scope)
            # Of an answer that was begun nothing can be taken back: the connection is closed.
            if answer is not None and not status:
                async with asyncio.timeout(self._service.limits.body_seconds):
                    await answer(scope, receive, sending)
        except TimeoutError:
            pass  # not even the error was read
        finally:
            self._count(scope, status or _CLIENT_GONE, time.perf_counter() - start)

    async def _guarded(self, call: Callable[[], Awaitable[None]], scope: Scope) -> Response | None:
        """Call what answers; an error becomes the answer that is returned."""
        service = self._service
        try:
            self._check_key(scope)
            async with asyncio.timeout(service.limits.seconds):
                await call()
        except RefusedError as exc:
            return _error(exc.status, exc.message, exc.headers)
        except GoneError:
            return None
        except HTTPException as exc:  # the router's
            return _error(exc.status_code, f"{exc.detail}.", exc.headers)
        except TimeoutError:
            return _error(504, f"There was no answer within {service.limits.seconds:g} seconds.")
        except DeploykitError as exc:
            service.progress(Note(f"a request failed: {exc.message}"))
            return _error(500, exc.message)
        except Exception as exc:  # noqa: BLE001  # one request fails, and the server goes on
            service.progress(Note(f"a request failed, which is a bug of deploykit's: {exc!r}"))
            return _error(500, "The server failed.")
        return None

    def _check_key(self, scope: Scope) -> None:
        keys = self._service.keys
        if keys is None or scope["path"] in _OPEN:
            return
        if not keys.allow(Request(scope).headers.get("authorization", "")):
            raise RefusedError(
                401,
                "This needs an API key: Authorization: Bearer KEY.",
                {"WWW-Authenticate": "Bearer"},
            )

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        metrics = self._service.metrics
        route = getattr(scope.get("endpoint"), "__name__", "_none").removeprefix("_")
        metrics.requests.labels(route, str(status)).inc()
        metrics.seconds.labels(route).observe(seconds)
        metrics.measure(self._service.admission, self._service.model.waiting)

    async def _predict(self, request: Request) -> Response:
        service, headers = self._service, request.headers
        with service.admission.place(headers) as place, service.using() as model:
            body = await read_body(request.receive, headers, service.limits)
            kind = headers.get("content-type", "")
            read = partial(read_uploads, body, kind, service.limits.queue)
            is_simple = not kind.lower().startswith((FORM, JSON))
            uploads = read() if is_simple else await service.parse(read)
            place.grow(len(uploads.images))
            rows = await self._answered(model.rows(uploads.images, uploads.names))
            for row in rows:
                service.metrics.images.labels(row["status"]).inc()
            if uploads.is_list:
                return _json(rows)
            (row,) = rows
            return _json(row, 200 if row["status"] == "ok" else 422)

    async def _infer(self, request: Request) -> Response:
        service, headers = self._service, request.headers
        with service.admission.place(headers) as place, service.using() as model:
            self._check_model(request, model)
            body = await read_body(request.receive, headers, service.limits)
            length = headers.get(kserve.HEADER_LENGTH)
            read = partial(kserve.read_call, body, length, model.bundle)
            told = kserve.json_bytes(length)
            is_small = (len(body) if told is None else told) <= _SMALL_JSON
            call = read() if is_small else await service.parse(read)
            place.grow(call.count)
            logits = await self._answered(self._logits(model, call))
            service.metrics.images.labels("ok").inc(call.count)
            content, more = kserve.write_answer(call, model.bundle, logits)
            return Response(content, headers=more)

    async def _logits(self, model: ServedModel, call: kserve.Call) -> np.ndarray[Any, Any]:
        if call.pixels is not None:
            return await model.logits(model.grey(call.pixels))
        files = call.files or []
        read = await model.read(files, [f"image {place}" for place in range(len(files))])
        for place, each in enumerate(read):
            if isinstance(each, Failure):
                self._service.metrics.images.labels(each.status).inc()
                raise RefusedError(400, f"image {place}: {each.status}: {each.reason}")
        return await model.logits(np.stack(read))  # type: ignore[arg-type]  # no failure is left

    async def _answered(self, answer: Awaitable[Any]) -> Any:
        """Wait for an answer, and count whether there was one."""
        service = self._service
        service.unanswered += 1
        try:
            found = await answer
        except RefusedError:
            service.unanswered -= 1
            service.answered += 1
            raise
        service.unanswered -= 1
        service.answered += 1
        return found

    def _check_model(self, request: Request, model: ServedModel) -> None:
        name, version = request.path_params["name"], request.path_params.get("version", "1")
        if name != model.bundle.name:
            raise RefusedError(404, f"There is no model {name!r}; there is {model.bundle.name!r}.")
        if version != kserve.VERSION:
            raise RefusedError(404, f"There is no version {version!r}; there is {kserve.VERSION}.")

    async def _server(self, request: Request) -> Response:
        del request
        return _json(kserve.ServerMetadata())

    async def _live(self, request: Request) -> Response:
        del request
        return _json({"live": True})

    async def _ready(self, request: Request) -> Response:
        del request
        is_ready = not self._service.is_draining
        return _json({"ready": is_ready}, 200 if is_ready else 503)

    async def _model(self, request: Request) -> Response:
        model = self._service.model
        self._check_model(request, model)
        spec = model.session.spec
        about = {
            "graph": spec.graph,
            "precision": spec.precision,
            "device": spec.device,
            "manifest_sha256": model.digest,
            "proof": model.status.word,
        }
        return _json(kserve.model_metadata(model.bundle, spec.runtime, about))

    async def _model_ready(self, request: Request) -> Response:
        self._check_model(request, self._service.model)
        is_ready = not self._service.is_draining
        value = {"name": self._service.model.bundle.name, "ready": is_ready}
        return _json(value, 200 if is_ready else 503)

    async def _metrics(self, request: Request) -> Response:
        del request
        metrics = self._service.metrics
        return Response(metrics.text(), media_type=metrics.content_type)

    async def _openapi(self, request: Request) -> Response:
        del request
        return _json(self._document())

    async def _docs(self, request: Request) -> Response:
        del request
        return Response(docs_page(self._document()), headers=_PAGE_HEADERS, media_type="text/html")

    async def _home(self, request: Request) -> Response:
        del request
        page = home_page(self._service.model, needs_key=self._service.keys is not None)
        return Response(page, headers=_PAGE_HEADERS, media_type="text/html")

    def _document(self) -> dict[str, Any]:
        service = self._service
        return openapi_document(
            service.model.bundle, service.limits, needs_key=service.keys is not None
        )


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    if isinstance(value, msgspec.Struct):
        text = msgspec.json.encode(value)
    else:
        text = json.dumps(value).encode()  # as predict writes it to stdout
    return Response(text, status, headers, media_type=JSON)


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return _json({"error": message}, status, headers)
