"""Whether the service lives, whether it can serve, and its figures."""

import logging
from collections.abc import Callable

import sqlalchemy as sa
from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from curator import storage
from service.auth import Admin
from service.context import Context, Services
from service.database import reading
from service.problems import Problem, responses

router = APIRouter(tags=["operations"])
_log = logging.getLogger("curator.service")
_LEAST_FREE_BYTES = 100 << 20


class LiveModel(BaseModel):
    """The process answers."""

    status: str


@router.get("/livez", operation_id="livez")
async def livez() -> LiveModel:
    """The process answers."""
    return LiveModel(status="alive")


@router.get("/readyz", operation_id="readyz", response_model=LiveModel, responses=responses(503))
def readyz(context: Context) -> Response:
    """Whether everything that the service needs works; the log of the service says what does not."""
    failing = failing_checks(context)
    if failing:
        _log.warning("not ready: %s", ", ".join(failing))
        raise Problem(503, "not_ready", "the service is not ready; its log names the failing check")
    return JSONResponse({"status": "ready"})


def failing_checks(context: Services) -> list[str]:
    """Names of the checks that fail."""
    checks: dict[str, Callable[[], bool]] = {
        "database": lambda: _database_answers(context),
        "data_dir": lambda: (storage.free_bytes(str(context.settings.data_dir)) or 0) > _LEAST_FREE_BYTES,
        "watcher": context.watcher.alive,
    }
    return [name for name, check in checks.items() if not check()]


def _database_answers(context: Services) -> bool:
    try:
        with reading(context.store.engine) as connection:
            return bool(connection.execute(sa.select(1)).scalar_one() == 1)
    except sa.exc.SQLAlchemyError:
        return False


@router.get("/metrics", operation_id="metrics", response_class=Response, responses=responses(401, 403, 429))
def metrics(context: Context, principal: Admin) -> Response:
    """Figures for Prometheus; needs a key with scope admin."""
    from prometheus_client import CONTENT_TYPE_LATEST

    return Response(context.metrics.expose(), media_type=CONTENT_TYPE_LATEST)
