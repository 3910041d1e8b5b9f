"""The wiring: from settings to an ASGI application with its threads."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import database, pod, v2
from service.batcher import Batcher
from service.facts import Facts
from service.journal import Journal
from service.metrics import Metrics
from service.model import Model
from service.predictions import KNOWN_METHODS, Form, Predictions, Several, Single
from service.reader import Away, Reader
from service.schema import Schema
from service.settings import Settings
from service.shipper import Shipper

log = logging.getLogger(__name__)
STUCK_SECONDS = 5.0  # a group of predictions takes milliseconds; a disk that does not answer takes for ever


class Health(BaseModel):
    """Liveness or readiness."""

    status: str


class Problem(BaseModel):
    """What every answer other than 2xx says."""

    detail: str


class Info(BaseModel):
    """Which model answers, and as what."""

    model_config = ConfigDict(protected_namespaces=())
    model_name: str
    version: str
    algorithm: str
    run_id: str
    sha256: str
    environment: str
    role: str
    canary_percentage: int
    pod_template_hash: str


class LogEntry(BaseModel):
    """A row of the prediction log; times are UTC."""

    model_config = ConfigDict(protected_namespaces=())
    id: int
    request_id: str
    model_name: str
    model_version: str
    features: str
    prediction: int
    probability: float
    latency_ms: float
    timestamp: str
    created_at: str


class Logs(BaseModel):
    """The newest rows of the prediction log, newest first."""

    count: int
    logs: list[LogEntry]


class Service:
    """Everything that runs in one process: the model, the journal, their threads, and the endpoints."""

    def __init__(self, settings: Settings) -> None:
        """Verify and open everything. Raises ModelError, JournalError."""
        self.settings = settings
        self.model = Model(settings.model_dir)
        self.journal = Journal(settings.journal_dir, settings.journal_max_mib)
        self._end_waits = database.bound_waits()
        self.shipper = Shipper(self.journal, settings.database_url)
        self.metrics = Metrics(self.model)
        self.metrics.watch(self.journal, self.shipper)
        self.batcher = Batcher(self.model, self.journal, self.shipper, self.metrics, settings.max_waiting)
        self.reader = Reader(settings.database_url)
        self.draining = False

    def unready(self) -> str | None:
        """Return why this process should get no requests, None when it should. PostgreSQL is no reason."""
        if self.draining:
            return "draining"
        if self.batcher.busy_seconds() > STUCK_SECONDS:
            return f"the journal has not answered for {self.batcher.busy_seconds():.0f} s"
        if self.journal.error is not None:
            return f"the journal cannot be written: {self.journal.error}"
        return None

    @asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        """Run the threads while the application serves; then drain within settings.drain_seconds."""
        self.batcher.start()
        self.shipper.start()
        ticking = asyncio.create_task(self._tick())
        log.info("ready", extra={"model": self.model.facts.name, "version": self.model.facts.version})
        yield
        ticking.cancel()
        self.batcher.stop()
        self.reader.stop()
        await asyncio.to_thread(self.shipper.drain, self.settings.drain_seconds)
        self._end_waits()  # the interpreter would wait for the reader's threads
        log.info("drained", extra={"waiting": self.journal.depth})
        self.journal.close()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1)
            self.metrics.tick()
            if self.journal.error is not None:
                await asyncio.to_thread(self.journal.probe)  # which takes as long as the disk does


def create_app(service: Service) -> ASGIApp:
    """Return the ASGI application of a service."""
    schema = Schema(service.model.facts.features)
    inference = v2.Inference(schema)
    forms: dict[str, Form] = {"/predict": Single(schema), "/predict/batch": Several(schema)}
    forms |= {f"{address}/infer": inference for address in v2.addresses(service.model.facts)}
    hot = {
        path: Predictions(path, form, service.model, service.batcher, service.reader, service.metrics)
        for path, form in forms.items()
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

    try:
        await cold(scope, receive, observe)
    finally:
        route = scope.get("route")
        endpoint = getattr(route, "path", None) or "other"
        method = scope["method"] if scope["method"] in KNOWN_METHODS else "OTHER"
        metrics.requested(method, endpoint, status, time.perf_counter() - started)
        if status >= 500:
            log.error("failed", extra={"endpoint": endpoint, "status": status, "request_id": request_id})


def _cold_endpoints(service: Service, schema: Schema, inference: v2.Inference) -> FastAPI:
    classes = ", ".join(service.model.facts.classes)
    app = FastAPI(
        title=service.model.facts.name,
        version=service.model.facts.version,
        description=f"Predicts one of {classes}; every answered prediction is in the log, exactly once.",
        lifespan=service.running,
        redoc_url=None,
        redirect_slashes=False,  # the address of a redirect would be built from the client's Host header
    )
    unavailable: dict[int | str, dict[str, Any]] = {503: {"model": Problem, "description": "Not now; why."}}

    _answer_errors(app, service.model.facts)

    @app.get("/healthz")
    async def healthz() -> Health:
        """Say that the process answers; touches nothing else."""
        return Health(status="ok")

    @app.get("/readyz", responses=unavailable)
    async def readyz() -> Health:
        """Say whether this process should get requests: model verified, journal writable, not draining."""
        if reason := service.unready():
            raise HTTPException(503, reason)
        return Health(status="ok")

    @app.get("/info")
    async def info() -> Info:
        """Say which model answers, in which environment, and whether this pod is the canary."""
        facts = service.model.facts
        return Info(
            model_name=facts.name,
            version=facts.version,
            algorithm=facts.algorithm,
            run_id=facts.run_id,
            sha256=facts.sha256,
            environment=service.settings.environment,
            **pod.read(service.settings.pod_labels)._asdict(),
        )

    @app.get("/logs", responses={**unavailable, 422: {"model": Problem}})
    async def logs(limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> Logs:
        """Return the newest predictions of the log in PostgreSQL."""
        try:
            rows = await service.reader.newest(limit)
        except Away:
            waiting = service.journal.depth
            raise HTTPException(
                503, f"PostgreSQL is away; {waiting} predictions wait in the journal", {"retry-after": "2"}
            ) from None
        for row in rows:
            row["timestamp"], row["created_at"] = row["timestamp"].isoformat(), row["created_at"].isoformat()
        return Logs(count=len(rows), logs=[LogEntry(**row) for row in rows])

    @app.get("/metrics", response_class=Response)
    @app.get("/metrics-prometheus", response_class=Response)
    async def metrics() -> Response:
        """Return the metrics in Prometheus' text format."""
        return Response(service.metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.include_router(v2.endpoints(service.model.facts, service.unready))
    _describe_predictions(app, service.model.facts, schema, inference)
    return app


def _answer_errors(app: FastAPI, facts: Facts) -> None:
    """Answer every error as `{"detail": ...}`, or as the protocol has it; FastAPI's own answers echo the input."""

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        detail = "; ".join(f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors())
        return JSONResponse({"detail": detail}, 422)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        if not f"{request.scope['path']}/".startswith("/v2/"):
            return JSONResponse({"detail": error.detail}, error.status_code, error.headers)
        said = v2.not_found(facts) if error.status_code == 404 else error.detail
        return JSONResponse({"error": said}, error.status_code, error.headers)


def _describe_predictions(app: FastAPI, facts: Facts, schema: Schema, inference: v2.Inference) -> None:
    """Add to /openapi.json what FastAPI does not see: the hot endpoints, in the types that they really decode."""
    framework = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = framework()
            document["components"]["schemas"].update(schema.openapi(), **inference.openapi())
            document["paths"]["/predict"] = _operation("PredictRequest", "Answer", "Predict one row.")
            document["paths"]["/predict/batch"] = _operation(
                "BatchRequest", "Answers", "Predict up to 1,000 rows."
            )
            for address in v2.addresses(facts):
                document["paths"][f"{address}/infer"] = _inference(f"{address}/infer", facts)
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it


def _inference(path: str, facts: Facts) -> dict[str, Any]:
    summary = "Predict the rows of a tensor, in the Open Inference Protocol."
    operation = _operation("InferenceRequest", "InferenceResponse", summary, "ProtocolError")
    post = operation["post"]
    post["operationId"] = path
    post["requestBody"]["content"]["application/json"]["example"] = v2.example(facts)
    del post["responses"]["422"]
    post["responses"]["400"]["description"] = (
        "The body is not JSON, or not what the protocol and the model take, or Idempotency-Key is not a UUID; "
        "error says which."
    )
    return operation


def _operation(request: str, answer: str, summary: str, problem: str = "Problem") -> dict[str, Any]:
    def content(name: str) -> dict[str, Any]:
        return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}

    problems = {
        "400": "The body is not JSON, or Idempotency-Key is not a UUID.",
        "409": "The Idempotency-Key was used for another body.",
        "413": "The body is larger than 64 KiB.",
        "415": "The content type is not application/json.",
        "422": "A field is missing, unknown, of the wrong type or out of bounds; detail says which.",
        "503": "Too many requests wait, or the log cannot be written; Retry-After says when to come back.",
    }
    return {
        "post": {
            "summary": summary,
            "operationId": request,
            "parameters": [
                {
                    "name": "Idempotency-Key",
                    "in": "header",
                    "required": False,
                    "description": "A repeat under the same key gets the first answer again and no second row.",
                    "schema": {"type": "string", "format": "uuid"},
                }
            ],
            "requestBody": {"required": True, "content": content(request)},
            "responses": {
                "200": {"description": "The answer; it is in the log.", "content": content(answer)},
                **{
                    status: {"description": text, "content": content(problem)} for status, text in problems.items()
                },
            },
        }
    }
