"""What `curator serve` does: open the database, show the first key once, and serve until it is told to stop."""

import json
import logging
import sys
import time

import uvicorn

from curator.errors import ClusterError
from curator.job_directory import DEFAULT_TENANT
from service.app import build_app, make_services
from service.context import Services
from service.keys import SCOPES
from service.settings import Settings

_STOP_WITHIN_S = 5


class JsonLines(logging.Formatter):
    """One JSON object a line; never any corpus text, as nothing of it is ever logged."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "at": f"{moment}.{int(record.msecs):03d}Z", "level": record.levelname.lower(), "logger": record.name,
            "message": record.getMessage(),
        }  # fmt: skip
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def serve(settings: Settings, *, reindex: bool = False, new_key: bool = False) -> None:
    """Serve until SIGINT or SIGTERM; jobs that run then go on, and the next start follows them.

    Args:
        settings: all of them.
        reindex: first read the jobs back from their directories.
        new_key: print one more admin key, for when the first was lost.

    Raises:
        ClusterError: the Ray cluster or the database cannot be reached.
    """
    _log_to_stderr()
    try:
        services = make_services(settings)
    except (OSError, RuntimeError, ConnectionError) as error:
        raise ClusterError(f"cannot start: {error}; check database_url, ray_address and data_dir") from error
    if reindex:
        print(f"Reindexed {services.submissions.reindex()} jobs", flush=True)
    if new_key or not services.keys.all():
        _, text = services.keys.create(DEFAULT_TENANT, "first key", SCOPES)
        print(f"API key: {text}", flush=True)
    _Server(_config(services)).run()


def _config(services: Services) -> uvicorn.Config:
    settings = services.settings
    return uvicorn.Config(
        build_app(services), host=settings.host, port=settings.port, log_config=None, access_log=False,
        server_header=False, timeout_graceful_shutdown=_STOP_WITHIN_S, http="httptools", loop="uvloop",
    )  # fmt: skip


class _Server(uvicorn.Server):
    """Says where it listens, once it does."""

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup(sockets)  # type: ignore[arg-type]
        for server in self.servers:
            for socket in server.sockets:
                host, port = socket.getsockname()[:2]
                shown = f"[{host}]" if ":" in host else host
                print(f"Listening on http://{shown}:{port}", flush=True)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)
