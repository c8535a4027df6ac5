"""Whether the service lives, whether it can serve, and its figures."""

import asyncio

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from service.auth import Scraper
from service.context import Context
from service.problems import Problem, responses

router = APIRouter(tags=["operations"])


class LiveModel(BaseModel):
    """The process answers."""

    status: str


@router.get("/livez", operation_id="livez")
async def livez() -> LiveModel:
    """The process answers."""
    return LiveModel(status="alive")


@router.get("/readyz", operation_id="readyz", response_model=LiveModel, responses=responses(503))
async def readyz(context: Context) -> Response:
    """Whether everything that the service needs works; its log, and `ready` of its figures, say what does not."""
    if not all((await asyncio.wrap_future(context.readiness.ask())).values()):
        raise Problem(503, "not_ready", "the service is not ready; its log names the failing check")
    return JSONResponse({"status": "ready"})


@router.get("/metrics", operation_id="metrics", response_class=Response, responses=responses(401, 403, 429))
def metrics(context: Context, principal: Scraper) -> Response:
    """Figures for Prometheus; needs a key with scope metrics, which can do nothing else, or admin."""
    return Response(context.metrics.expose(context.readiness.checks()), media_type=CONTENT_TYPE_LATEST)
