"""The dashboard's pages: rendered on the server, readable without script, live with it.

A page knows its reader by the session's cookie alone, and redirects to /login where there is none. What the script
of a page asks for, it asks /v1 for, like any other client.
"""

import hmac
import posixpath
import re
from typing import Annotated, Any
from urllib.parse import parse_qs, quote, urlencode

import yaml
from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from curator.errors import CuratorError
from curator.inspection import Funnel, read_funnel
from curator.job_directory import JOB_ID_PATTERN
from service.auth import SESSION_COOKIE, Principal, Reader, close_session, csrf_token, open_session, session_principal
from service.context import Context, Services, find_job
from service.datasets import open_dataset
from service.problems import Problem
from service.store import Job
from service.ui import examples
from service.ui.history import read_history, read_log_tail
from service.ui.render import render
from service.ui.spec_text import yaml_to_json
from service.ui.views import (
    KINDS,
    STATUSES,
    view_facts,
    view_figures,
    view_funnel,
    view_job,
    view_running,
    view_stages,
    view_timeline,
)

router = APIRouter(include_in_schema=False)

_PAGE_JOBS = 50
_MAX_FORM_BYTES = 1 << 16
_MAX_SPEC_BYTES = 1 << 17


def _visitor(request: Request, context: Context) -> Principal:
    """Who sits at the browser; sends others to /login and back."""
    principal = session_principal(request, context)
    if principal is None:
        target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        location = "/login" if target == "/" else f"/login?next={quote(target)}"
        raise Problem(303, "sign_in", "sign in first", headers={"Location": location, "Cache-Control": "no-store"})
    return principal


Visitor = Annotated[Principal, Depends(_visitor)]


async def _form(request: Request) -> dict[str, str]:
    """The fields of a small urlencoded form."""
    body = await _read(request, _MAX_FORM_BYTES)
    return {name: values[-1] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}


async def _spec_text(request: Request) -> bytes:
    return await _read(request, _MAX_SPEC_BYTES)


async def _read(request: Request, limit: int) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise Problem(413, "too_large", f"the body has more than {limit:,} bytes; send less")
    return bytes(body)


Form = Annotated[dict[str, str], Depends(_form)]


def _page(request: Request, template: str, principal: Principal | None, status: int = 200, **values: Any) -> Response:
    token = request.cookies.get(SESSION_COOKIE)
    csrf = csrf_token(token) if principal is not None and token is not None else ""
    can_write = principal is not None and "write" in principal.scopes
    html = render(template, principal=principal, csrf=csrf, can_write=can_write, **values)
    return HTMLResponse(html, status, {"Cache-Control": "no-store"})


# ------------------------------------------------------------------------------------------------ signing in


@router.get("/login")
def show_login(request: Request, context: Context, next: str = "/") -> Response:
    """The form that takes an API key."""
    if session_principal(request, context) is not None:
        return RedirectResponse(_local(next), 303)
    return _page(request, "login.html", None, next=_local(next), refused=False)


@router.post("/login")
def sign_in(request: Request, context: Context, form: Form) -> Response:
    """Take an API key and give a session's cookie for it."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise Problem(403, "csrf", "this form was sent from another site; open the service's own /login")
    target = _local(form.get("next", "/"))
    opened = open_session(context, form.get("key", "").strip())
    if opened is None:
        return _page(request, "login.html", None, 401, next=target, refused=True)
    response = RedirectResponse(target, 303)
    response.set_cookie(
        SESSION_COOKIE, opened[0], httponly=True, samesite="strict", secure=_is_secure(context), path="/",
        max_age=round(context.settings.session_hours * 3600),
    )  # fmt: skip
    return response


@router.post("/logout")
def sign_out(request: Request, context: Context, form: Form) -> Response:
    """End the session."""
    token = request.cookies.get(SESSION_COOKIE, "")
    if token and not hmac.compare_digest(form.get("csrf", "").encode(), csrf_token(token).encode()):
        raise Problem(403, "csrf", "this form is not of your session; reload the page and try again")
    close_session(context, token)
    response = RedirectResponse("/login", 303)
    response.delete_cookie(SESSION_COOKIE, path="/", httponly=True, samesite="strict", secure=_is_secure(context))
    return response


def _local(target: str) -> str:
    """A path of this service; anything that a browser could take for another site becomes the front page."""
    plain = target.startswith("/") and not target.startswith("//") and "\\" not in target and target.isprintable()
    return target if plain else "/"


def _is_secure(context: Services) -> bool:
    return (context.settings.public_url or "").startswith("https://")


# ------------------------------------------------------------------------------------------------ jobs


@router.get("/")
def show_jobs(
    request: Request, context: Context, principal: Visitor, name: str = "", status: str = "", kind: str = "",
    before: str = "",
) -> Response:  # fmt: skip
    """The list of jobs, and the form for a new one; to those who may not read jobs, the page of keys."""
    if "read" not in principal.scopes:
        return RedirectResponse("/keys", 303)
    filters = {
        "name": name[:200].replace("\0", ""),
        "status": status if status in STATUSES else "",
        "kind": kind if kind in KINDS else "",
    }
    before = before if re.match(JOB_ID_PATTERN, before) else ""
    chosen = {key: value for key, value in filters.items() if value}
    found = context.store.page(
        principal.tenant,
        status=[filters["status"]] if filters["status"] else [],
        kind=filters["kind"] or None,
        name=filters["name"] or None,
        before=before or None,
        limit=_PAGE_JOBS + 1,
    )
    shown = found[:_PAGE_JOBS]
    more = len(found) > _PAGE_JOBS
    here = "/?" + urlencode(chosen | ({"before": before} if before else {}))
    return _page(
        request, "jobs.html", principal, section="jobs", jobs=[view_job(job) for job in shown], filters=filters,
        filtered=bool(chosen or before), statuses=STATUSES.items(), kinds=KINDS.items(), here=here.removesuffix("?"),
        next_page="/?" + urlencode(chosen | {"before": shown[-1].id}) if more else None,
        summary=_summarise(shown, more), examples=examples.SPECS,
    )  # fmt: skip


def _summarise(jobs: list[Job], more: bool) -> str:
    running = sum(not job.terminal and job.status != "queued" for job in jobs)
    waiting = sum(job.status == "queued" for job in jobs)
    number = f"{len(jobs)}{'+' if more else ''} job{'' if len(jobs) == 1 else 's'}"
    return ", ".join(
        [number, *([f"{running} running"] if running else []), *([f"{waiting} waiting"] if waiting else [])]
    )


@router.get("/jobs/{job_id}")
def show_job(request: Request, context: Context, principal: Visitor, job_id: str) -> Response:
    """One job."""
    job = _find(context, principal, job_id)
    if job is None:
        return _missing(request, principal)
    history = read_history(job.directory, job.attempt)
    return _page(
        request,
        "job.html",
        principal,
        section="jobs",
        tab="overview",
        job=view_job(job),
        running=view_running(job),
        figures=view_figures(job),
        funnel=view_funnel(job, _read_funnel(job)),
        stages=view_stages(job),
        timeline=view_timeline(job, history.states),
        facts=view_facts(job),
        models=list(job.spec.get("models", {})),
        spec_yaml=yaml.safe_dump(job.spec, sort_keys=False, allow_unicode=True, width=72),
        download=_download_commands(context, request, job),
        log=read_log_tail(job.directory),
        last_event=history.last_event,
    )


@router.get("/jobs/{job_id}/tokens")
def show_tokens(request: Request, context: Context, principal: Visitor, job_id: str) -> Response:
    """The tokens of one job, and where its cut could lie."""
    job = _find(context, principal, job_id)
    if job is None or job.kind != "curate":
        return _missing(request, principal)
    policy = job.spec.get("policy", {})
    return _page(request, "tokens.html", principal, section="jobs", tab="tokens", job=view_job(job), policy=policy)


@router.get("/keys")
def show_keys(request: Request, principal: Visitor) -> Response:
    """API keys, for administrators."""
    if "admin" not in principal.scopes:
        return _missing(request, principal)
    return _page(request, "keys.html", principal, section="keys")


@router.post("/spec")
def read_spec_text(principal: Reader, body: Annotated[bytes, Depends(_spec_text)]) -> Response:
    """A spec as somebody types it, in YAML, as JSON; whether it is a good one, /v1/jobs:validate says."""
    return Response(yaml_to_json(body), media_type="application/json", headers={"Cache-Control": "no-store"})


# ------------------------------------------------------------------------------------------------ parts


def _find(context: Services, principal: Principal, job_id: str) -> Job | None:
    """The tenant's job; None for what is no id at all, and for a key that may not read jobs."""
    if "read" not in principal.scopes:
        return None
    try:
        return find_job(context, principal, job_id) if re.match(JOB_ID_PATTERN, job_id) else None
    except Problem:
        return None


def _missing(request: Request, principal: Principal) -> Response:
    return _page(request, "missing.html", principal, 404)


def _read_funnel(job: Job) -> Funnel | None:
    """Counts from receipts; None where they cannot be read now, as when the output's store is away."""
    try:
        opened = open_dataset(job)
        return None if opened is None else read_funnel(opened)
    except (CuratorError, OSError):
        return None


def _download_commands(context: Services, request: Request, job: Job) -> dict[str, str]:
    server = (context.settings.public_url or str(request.base_url)).rstrip("/")
    shard = posixpath.join(server, "v1/jobs", job.id, "shards/0")
    return {
        "client": f"curator download {job.id} --server {server}",
        "curl": f'curl -f -C - -o 00000.parquet -H "Authorization: Bearer $CURATOR_API_KEY" {shard}',
    }
