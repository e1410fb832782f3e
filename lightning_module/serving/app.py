"""The routes of the service."""

import time
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from lightning_module.serving.answers import Answers
from lightning_module.serving.limits import Refused
from lightning_module.serving.schemas import (
    ERRORS,
    PHOTOS_BODY,
    ExplainAnswer,
    HealthAnswer,
    ModelAnswer,
    PredictAnswer,
)
from lightning_module.serving.uploads import read_uploads
from lightning_module.serving.web.files import FILES, docs_page

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""Of every answer: the page takes nothing from elsewhere, and what is said of a photo is not kept."""
WORDS = {404: "not_found", 405: "method_not_allowed"}


def make_app(answers: Answers, title: str) -> FastAPI:
    """Return the application; `state.draining` is set where it is about to end.

    Args:
        answers: has been started.
        title: of the API.
    """
    # FastAPI's own /docs takes its scripts from another server
    app = FastAPI(title=title, version=answers.facts.content["version"], docs_url=None, redoc_url=None)
    app.state.draining = False
    _add_photo_routes(app, answers)
    _add_facts(app, answers)
    _add_page(app)
    _add_errors(app)
    app.add_middleware(Counted, answers=answers, state=app.state)
    return app


def _add_photo_routes(app: FastAPI, answers: Answers) -> None:
    most = len(answers.class_names)

    @app.post(
        "/predict", response_model=PredictAnswer, response_model_exclude_unset=True, responses=ERRORS,
        openapi_extra=PHOTOS_BODY, summary="Label photos",
    )  # fmt: skip
    async def predict(
        request: Request,
        top: Annotated[int | None, Query(ge=1, le=most, description="number of labels for each photo")] = None,
    ) -> JSONResponse:
        """One or several photos in, labels and probabilities out: the numbers of `lightning predict`.

        If one photo cannot be read, none is labelled, and the answer names all that cannot.
        """
        began = time.perf_counter()
        with answers.received.held() as share:
            uploads = await read_uploads(request, answers.limits, share)
            photos = await answers.answer(uploads, top)
        return JSONResponse({"model": answers.facts.digest, "milliseconds": _since(began), "photos": photos})

    @app.post(
        "/explain", response_model=ExplainAnswer, responses=ERRORS, openapi_extra=PHOTOS_BODY,
        summary="Explain the answer to one photo",
    )  # fmt: skip
    async def explain(request: Request) -> JSONResponse:
        """Where the network looks, and what may make it unsure. It takes some fifty times as long as a label."""
        began = time.perf_counter()
        with answers.received.held() as share:
            uploads = await read_uploads(request, answers.limits, share)
            if len(uploads) != 1:
                raise Refused(
                    422, "one_photo", f"expected one photo to explain, received {len(uploads)}. Send them one by one."
                )
            explained = await answers.explain(uploads[0])
        return JSONResponse({**explained, "milliseconds": _since(began)})


def _add_facts(app: FastAPI, answers: Answers) -> None:
    @app.head("/healthz", include_in_schema=False)  # as some load balancers ask
    @app.get("/healthz", response_model=HealthAnswer, responses={503: {"model": HealthAnswer}}, summary="Is it well?")
    async def healthz() -> JSONResponse:
        """200 while it answers; 503 while a twin is down, or while it is about to end."""
        down = answers.down()
        status = "draining" if app.state.draining else "down" if down else "ready"
        twins = {name: down.get(name, "ready") for name in answers.twins}
        return JSONResponse({"status": status, "twins": twins}, 200 if status == "ready" else 503)

    @app.get("/model", response_model=ModelAnswer, summary="What is served?")
    async def model() -> JSONResponse:
        """The model's labels, what it takes, how good it is, and whether the twins were proved to be the same."""
        return JSONResponse(answers.facts.content)

    @app.get("/metrics", response_class=PlainTextResponse, summary="Counters for Prometheus")
    async def metrics() -> Response:
        """Counters in Prometheus's text format."""
        counters = answers.counters
        counters.waiting.set(answers.waiting.taken)
        counters.received.set(answers.received.taken)
        for name, twin in answers.twins.items():
            counters.ready.labels(name).set(twin.down is None)
        return Response(counters.text(), media_type="text/plain; version=0.0.4")


def _add_page(app: FastAPI) -> None:
    def give(path: str, kind: str, content: Callable[[], bytes]) -> None:
        async def file(request: Request) -> Response:
            return Response(content(), media_type=kind)

        app.router.add_route(path, file, methods=["GET", "HEAD"], include_in_schema=False)

    for path, (kind, content) in FILES.items():
        give(path, kind, lambda content=content: content)  # type: ignore[misc]
    give("/docs", "text/html; charset=utf-8", lambda: docs_page(app.openapi()).encode())


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    async def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, Refused)
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        path = request.url.path
        method = (error.headers or {}).get("Allow")
        wanted = f"{method} {path}" if method else "a route that /docs lists"
        message = f"expected {wanted}, received {request.method} {path}: {error.detail}."
        code = WORDS.get(error.status_code, "refused")
        return JSONResponse(Refused(error.status_code, code, message).body, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        said = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        message = f"expected parameters as /docs has them, received others: {said}."
        return JSONResponse(Refused(422, "invalid", message).body, 422)


class Counted:
    """ASGI middleware: counts requests, adds the headers, and answers what nobody expected.

    Args:
        app: the application inside.
        answers: has the counters.
        state: the application's, with `draining`.
    """

    def __init__(self, app: Any, answers: Answers, state: Any) -> None:
        self.app, self.answers, self.state = app, answers, state
        self.paths = {"/predict", "/explain", "/healthz", "/model", "/metrics", "/docs", "/openapi.json", *FILES}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0
        route = scope["path"] if scope["path"] in self.paths else "other"

        async def counted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = {**HEADERS, **({"Connection": "close"} if self.state.draining else {})}
                message["headers"] = [
                    *message.get("headers", []), *((k.lower().encode(), v.encode()) for k, v in added.items())
                ]  # fmt: skip
            await send(message)

        try:
            await self.app(scope, receive, counted)
        except Exception:
            if not status:
                fault = Refused(
                    500, "fault", "expected an answer, received an error in the service. Its log has the traceback."
                )
                await JSONResponse(fault.body, 500)(scope, receive, counted)
            raise  # uvicorn writes the traceback
        finally:
            self.answers.counters.requests.labels(route, str(status)).inc()
            self.answers.counters.seconds.labels(route).observe(time.perf_counter() - began)


def _since(began: float) -> float:
    return round((time.perf_counter() - began) * 1000, 1)
