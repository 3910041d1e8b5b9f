"""The wiring: turn settings into an ASGI application and its threads."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import database, pod, v2
from service.batcher import Batcher
from service.journal import Journal
from service.metrics import Metrics, method_label
from service.model import Model
from service.model_metadata import ModelMetadata
from service.prediction_log import DatabaseUnavailable, PredictionLog
from service.predictions import Codec, FeaturesCodec, Predictions
from service.schema import Schema
from service.settings import Settings
from service.shipper import Shipper

log = logging.getLogger(__name__)
MAX_ID = 2**63 - 1  # of BIGINT
STUCK_SECONDS = 5.0  # a group of predictions takes milliseconds, unless the disk hangs

# The page is public and its scripts come from a CDN, so the browser runs exactly these bytes or none.
SWAGGER_UI = "https://cdn.jsdelivr.net/npm/swagger-ui-dist@5.35.0"
SWAGGER_UI_FILES = {
    "swagger-ui-bundle.js": "sha384-gjRm0bEPMeTmMh5jT2cHccIwCUZSTd8YC+j0d0sXw0MdGEfScduGpSyF3ZSSLkX9",
    "swagger-ui.css": "sha384-WlYgdmXYOOBWL5apwjDEZwN+U3HmXSSu5R6V5aGxEcf7z+KuRNwBhoxKVN1i3D5I",
}

# For /openapi.json.
ERRORS = {
    "400": "The body is not JSON or not a valid tensor, or Idempotency-Key is not a UUID or occurs twice.",
    "409": "The Idempotency-Key was used with another body.",
    "413": "The body is larger than 1,000 rows can be.",
    "415": "The content type is not application/json, or the body is compressed.",
    "422": "A field is missing, unknown, of the wrong type or out of bounds; detail names it.",
    "503": "Too many requests are waiting, or the log cannot be written; retry after Retry-After.",
}
IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "A repeat with the same key gets the first answer and adds no row to the log.",
    "schema": {"type": "string", "format": "uuid"},
}


class Health(BaseModel):
    """Liveness or readiness."""

    status: str


class Problem(BaseModel):
    """The body of every error response outside /v2."""

    detail: str = Field(description="what is wrong; for an invalid request, with the field")


class Info(BaseModel):
    """The model that is served, and the role of this pod."""

    model_name: str
    version: str
    algorithm: str
    run_id: str
    sha256: str
    environment: str
    role: str
    canary_percentage: int
    pod_template_hash: str


class LogPage(BaseModel):
    """The parameters of /logs."""

    model_config = ConfigDict(extra="forbid")
    limit: int = Field(100, ge=1, le=1000)
    before: int | None = Field(None, ge=1, le=MAX_ID, description="only rows with a smaller id: the next page")


class LogEntry(BaseModel):
    """A row of the prediction log. Times are in UTC."""

    id: int
    request_id: str
    model_name: str
    model_version: str
    features: str
    prediction: int
    probability: float
    latency_ms: float
    timestamp: datetime
    created_at: datetime


class Logs(BaseModel):
    """Rows of the prediction log, newest first."""

    count: int
    logs: list[LogEntry]


class Service:
    """All parts of the serving process: the model, the journal, and the threads that work with them."""

    def __init__(self, settings: Settings) -> None:
        """Verify the model and open the journal. Raises ModelError, JournalError."""
        self.settings = settings
        self.model = Model(settings.model_dir)
        self.journal = Journal(settings.journal_dir, settings.journal_max_mib)
        self._cancel_waits = database.bound_waits()
        self.shipper = Shipper(self.journal, settings.database_url)
        self.metrics = Metrics(self.model)
        self.metrics.add_journal(self.journal, self.shipper)
        self.batcher = Batcher(self.model, self.journal, self.shipper, self.metrics, settings.max_waiting)
        self.prediction_log = PredictionLog(settings.database_url)
        self.draining = False

    def check_ready(self) -> None:
        """Raise HTTPException (503) when this process should not get requests. PostgreSQL is never a reason."""
        if self.draining:
            raise HTTPException(503, "draining")
        if (seconds := self.batcher.busy_seconds()) > STUCK_SECONDS:
            raise HTTPException(503, f"the journal has not responded for {seconds:.0f} s")
        if self.journal.error is not None:
            raise HTTPException(503, f"the journal cannot be written: {self.journal.error}")

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Run the threads while the application serves; then drain the journal within settings.drain_seconds."""
        self.batcher.start()
        self.shipper.start()
        ticking = asyncio.create_task(self._tick())
        metadata = self.model.metadata
        log.info("ready", extra={"model": metadata.name, "version": metadata.version})
        yield
        ticking.cancel()
        self.batcher.stop()
        self.prediction_log.stop()
        await asyncio.to_thread(self.shipper.drain, self.settings.drain_seconds)
        self._cancel_waits()  # the interpreter would wait for the threads of the prediction log
        if waiting := self.journal.depth:
            # In a cluster the journal is deleted with its pod.
            log.error("stopped before PostgreSQL has the whole journal", extra={"waiting": waiting})
        else:
            log.info("drained", extra={"waiting": 0})
        self.journal.close()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1)
            self.metrics.tick()
            if self.journal.error is not None:
                await asyncio.to_thread(self.journal.probe)  # the disk may be slow


def create_app(service: Service) -> ASGIApp:
    """Return the ASGI application of a service. Predictions take a hot path; FastAPI serves everything else."""
    metadata = service.model.metadata
    schema = Schema(metadata.features)
    inference = v2.InferenceCodec(schema)
    codecs: dict[str, Codec] = {
        "/predict": FeaturesCodec(schema, schema.one),
        "/predict/batch": FeaturesCodec(schema, schema.batch),
    }
    codecs |= {f"{address}/infer": inference for address in v2.addresses(metadata)}
    hot = {
        path: Predictions(path, codec, service.model, service.batcher, service.prediction_log, service.metrics)
        for path, codec in codecs.items()
    }
    cold = _cold_endpoints(service, schema, inference)

    def app(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "http":
            return cold(scope, receive, send)
        if (endpoint := hot.get(scope["path"])) is not None:
            return endpoint(scope, receive, send)
        return _observed(cold, service.metrics, scope, receive, send)

    return app


async def _observed(cold: FastAPI, metrics: Metrics, scope: Scope, receive: Receive, send: Send) -> None:
    started = time.perf_counter()
    request_id = str(uuid.uuid4())
    status = 500

    async def observe(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
            message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
        await send(message)

    # uvicorn sends no body in answer to HEAD: its own scope keeps the method.
    handled = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
    try:
        await cold(handled, receive, observe)
    except Exception:  # after the answer, which is that of _internal_error
        log.exception("failed")
    finally:
        route = handled.get("route")
        endpoint = getattr(route, "path", None) or "other"
        method = method_label(scope["method"])
        metrics.count_request(method, endpoint, status, time.perf_counter() - started)
        if status >= 500:
            log.error("failed", extra={"endpoint": endpoint, "status": status, "request_id": request_id})


def _cold_endpoints(service: Service, schema: Schema, inference: v2.InferenceCodec) -> FastAPI:
    metadata = service.model.metadata
    app = FastAPI(
        title=metadata.name,
        version=metadata.version,
        description=f"Predicts one of {', '.join(metadata.classes)}. Logs every answered prediction exactly once.",
        lifespan=service.lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # redirects would be built from the client's Host header
    )
    unavailable: dict[int | str, dict[str, Any]] = {503: {"model": Problem, "description": "Not available now."}}

    _handle_errors(app, metadata)

    swagger_ui = _swagger_ui(metadata.name)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        """Return Swagger UI."""
        return HTMLResponse(swagger_ui)

    @app.get("/healthz")
    async def healthz() -> Health:
        """Report that the process responds. Checks nothing else."""
        return Health(status="ok")

    @app.get("/readyz", responses=unavailable)
    async def readyz() -> Health:
        """Report whether this process should get requests: it is not draining, and its journal is writable."""
        service.check_ready()
        return Health(status="ok")

    @app.get("/info")
    async def info() -> Info:
        """Return the model that is served, the environment, and whether this pod is a canary."""
        model = msgspec.structs.asdict(metadata)
        own = pod.read(service.settings.pod_labels)._asdict()
        return Info(model_name=metadata.name, environment=service.settings.environment, **model, **own)

    @app.get("/logs", responses={**unavailable, 422: {"model": Problem}})
    async def logs(page: Annotated[LogPage, Query()]) -> Logs:
        """Return the newest predictions from the log in PostgreSQL."""
        try:
            rows = await service.prediction_log.newest(page.limit, page.before or MAX_ID)
        except DatabaseUnavailable:
            detail = f"PostgreSQL is unavailable; {service.journal.depth} predictions wait in the journal"
            raise HTTPException(503, detail, {"retry-after": "2"}) from None
        return Logs(count=len(rows), logs=[LogEntry(**row) for row in rows])

    @app.get("/metrics", response_class=Response)
    @app.get("/metrics-prometheus", response_class=Response)
    async def metrics() -> Response:
        """Return the metrics in the Prometheus text format."""
        return Response(service.metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.include_router(v2.endpoints(metadata, service.check_ready))
    _describe_predictions(app, metadata, schema, inference)
    return app


def _swagger_ui(title: str) -> str:
    """Return a page whose address of openapi.json is relative, for routers that strip a prefix."""
    page = get_swagger_ui_html(
        openapi_url="./openapi.json",
        title=title,
        swagger_js_url=f"{SWAGGER_UI}/swagger-ui-bundle.js",
        swagger_css_url=f"{SWAGGER_UI}/swagger-ui.css",
        swagger_favicon_url="data:,",
    )
    html = bytes(page.body).decode()
    for file, digest in SWAGGER_UI_FILES.items():
        html = html.replace(f'{file}"', f'{file}" integrity="{digest}" crossorigin="anonymous"')
    return html


def _handle_errors(app: FastAPI, metadata: ModelMetadata) -> None:
    """Return errors as `{"detail": ...}`, below /v2 as `{"error": ...}`. FastAPI's own would echo the input."""

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        detail = "; ".join(
            "unknown parameter"  # its name would quote the client
            if problem["type"] == "extra_forbidden"
            else f"{problem['loc'][-1]}: {problem['msg']}"
            for problem in error.errors()
        )
        return JSONResponse({"detail": detail}, 422)

    @app.exception_handler(Exception)
    async def _internal_error(request: Request, _: Exception) -> JSONResponse:
        return await _http(request, HTTPException(500, "the request failed"))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        path = request.scope["path"]
        if path != "/v2" and not path.startswith("/v2/"):
            return JSONResponse({"detail": error.detail}, error.status_code, error.headers)
        message = v2.not_found(metadata) if error.status_code == 404 else error.detail
        return JSONResponse({"error": message}, error.status_code, error.headers)


def _describe_predictions(
    app: FastAPI, metadata: ModelMetadata, schema: Schema, inference: v2.InferenceCodec
) -> None:
    """Add the hot endpoints, which FastAPI does not know, to /openapi.json, with the types that they decode."""
    cold_openapi = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = cold_openapi()
            document["components"]["schemas"].update(schema.openapi(), **inference.openapi())
            paths = document["paths"]
            paths["/predict"] = _operation("PredictRequest", "Answer", "Predict one row.")
            paths["/predict/batch"] = _operation("BatchRequest", "Answers", "Predict up to 1,000 rows.")
            for address in v2.addresses(metadata):
                paths[f"{address}/infer"] = _inference(f"{address}/infer", metadata)
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]  # the way that FastAPI documents


def _inference(path: str, metadata: ModelMetadata) -> dict[str, Any]:
    summary = "Predict the rows of a tensor (Open Inference Protocol)."
    operation = _operation("InferenceRequest", "InferenceResponse", summary, "ProtocolError")
    post = operation["post"]
    post["operationId"] = path
    post["requestBody"]["content"]["application/json"]["example"] = v2.example(metadata)
    del post["responses"]["422"]  # the protocol answers 400 to every invalid request
    return operation


def _operation(request: str, answer: str, summary: str, problem: str = "Problem") -> dict[str, Any]:
    def content(name: str) -> dict[str, Any]:
        return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}

    errors = {status: {"description": text, "content": content(problem)} for status, text in ERRORS.items()}
    success = {"description": "The prediction; it is logged.", "content": content(answer)}
    return {
        "post": {
            "summary": summary,
            "operationId": request,
            "parameters": [IDEMPOTENCY_KEY],
            "requestBody": {"required": True, "content": content(request)},
            "responses": {"200": success, **errors},
        }
    }
