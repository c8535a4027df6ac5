"""The application: its parts put together, its routes, and its OpenAPI document."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from curator import tracing
from service import problems
from service.auth import RateLimit
from service.changes import Changes
from service.context import Services
from service.database import open_database
from service.discovery import Discovery
from service.gate import Gate
from service.keys import KeyStore
from service.launcher import make_launcher
from service.metrics import Metrics
from service.observe import Observed
from service.openapi import describe
from service.readiness import Readiness
from service.routes import events, health, jobs, keys, looking, pages, shards, uploads
from service.settings import Settings
from service.store import Store
from service.submissions import Submissions
from service.threads import Threads
from service.watcher import Watcher

_STATIC = Path(__file__).parent / "ui" / "static"


def make_services(settings: Settings) -> Services:
    """Open everything that the service works with; nothing runs yet."""
    settings.jobs_dir.mkdir(parents=True, exist_ok=True)
    settings.data_dir.chmod(0o700)
    engine = open_database(settings)
    store = Store(engine, settings.jobs_dir)
    submissions, discovery = Submissions(settings, store), Discovery(settings, store)
    changes, metrics = Changes(), Metrics(settings, store)
    watcher = Watcher(settings, store, submissions, discovery, make_launcher(settings), metrics, changes.tell)
    return Services(
        settings=settings, store=store, keys=KeyStore(engine), submissions=submissions, discovery=discovery,
        watcher=watcher, changes=changes, metrics=metrics, readiness=Readiness(settings, store, watcher.alive),
        rate_limit=RateLimit(settings.requests_per_second), threads=Threads(),
    )  # fmt: skip


def build_app(services: Services) -> FastAPI:
    """The application over opened services; while it runs, jobs are started and followed."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        services.changes.use_loop(asyncio.get_running_loop())
        services.watcher.start()
        yield
        services.watcher.stop()
        tracing.finish()  # here, as uvicorn ends the process by the signal that stopped it

    app = FastAPI(title="Token curator", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.services = services
    problems.install(app)
    app.add_middleware(Gate, services=services, metrics=services.metrics)
    app.add_middleware(Observed)
    for resource in (jobs, events, shards, looking, uploads, keys):
        app.include_router(resource.router, prefix="/v1")
    app.include_router(health.router)
    app.include_router(pages.router, include_in_schema=False)
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")
    describe(app)
    return app
