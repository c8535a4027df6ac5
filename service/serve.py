"""What `curator serve` does: open the database, show the first key once, and serve until it is told to stop."""

import gc
import os
import socket
from urllib.parse import unquote

import sqlalchemy as sa
import uvicorn
from alembic.util import CommandError

from curator import logs, tracing
from curator.errors import ClusterError, SpecError
from curator.hiding import keep_secret
from curator.job_directory import DEFAULT_TENANT
from service.app import build_app, make_services
from service.context import Services
from service.keys import FIRST_SCOPES
from service.settings import Settings

_STOP_WITHIN_S = 5
_BACKLOG = 2048
_KEEP_ALIVE_S = 75  # longer than clients and proxies keep a connection, else one is closed under a request on its way
_CANNOT_START = (OSError, RuntimeError, ImportError, ValueError, sa.exc.SQLAlchemyError, CommandError)


def serve(settings: Settings, *, reindex: bool = False, new_key: bool = False) -> None:
    """Serve until SIGINT or SIGTERM; jobs that run then go on, and the next start follows them.

    Args:
        settings: all of them.
        reindex: first read the jobs back from their directories.
        new_key: print one more admin key, for when the first was lost.

    Raises:
        ClusterError: the port is in use, or the database cannot be reached.
        SpecError: the database is of a newer service.
    """
    logs.start(settings.log_format)
    _keep_secrets(settings)
    tracing.begin("service")
    with _listen(settings) as listener:  # first of all: a second service on this port must not take a job
        services = _open(settings)
        if reindex:
            print(f"Reindexed {services.discovery.reindex()} jobs", flush=True)
        else:
            services.discovery.discover()  # so that the first answers know what was there; the rest follows
        if new_key or not services.keys.all():
            _, text = services.keys.create(DEFAULT_TENANT, "first key", FIRST_SCOPES)
            print(f"API key: {text}", flush=True)
        _run(services, listener)


def _keep_secrets(settings: Settings) -> None:
    address = "" if settings.database_url is None else settings.database_url.get_secret_value()
    login = address.partition("://")[2].rpartition("@")[0]
    keep_secret(address, login, login.partition(":")[2])
    keep_secret(*(os.environ.get(variable) for variable in settings.allow_key_variables))


def _open(settings: Settings) -> Services:
    try:
        return make_services(settings)
    except SpecError:  # it says what to do
        raise
    except _CANNOT_START as error:
        reason = _without_password(str(getattr(error, "orig", None) or error), settings)
        raise ClusterError(
            f"cannot start: {reason}; check database_url (postgresql://USER:PASSWORD@HOST/NAME) and data_dir"
        ) from None


def _run(services: Services, listener: socket.socket) -> None:
    server = _Server(_config(services))
    gc.collect()
    gc.freeze()  # modules and routes stay: going over them again and again would hold up requests
    try:
        server.run(sockets=[listener])
    except SystemExit:  # uvicorn's own status 3 would say "finished with quarantined rows"
        raise ClusterError("the service cannot start; its log, above, says why") from None


def _listen(settings: Settings) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        where = f"host {settings.host!r}, port {settings.port}"
        raise ClusterError(
            f"cannot listen on {where}: {error.strerror or error}; stop what listens there, or choose another --port"
        ) from None


def _without_password(text: str, settings: Settings) -> str:
    """The text on one line; drivers quote parts of the address that they were given."""
    address = "" if settings.database_url is None else settings.database_url.get_secret_value()
    login = address.partition("://")[2].rpartition("@")[0]
    password = login.partition(":")[2]
    for secret in (address, login, password, unquote(password)):
        text = text.replace(secret, "[hidden]") if secret else text
    return " ".join(text.split())


def _config(services: Services) -> uvicorn.Config:
    settings = services.settings
    return uvicorn.Config(
        build_app(services), host=settings.host, port=settings.port, log_config=None, access_log=False,
        server_header=False, timeout_graceful_shutdown=_STOP_WITHIN_S,
        timeout_keep_alive=_KEEP_ALIVE_S, http="httptools", loop="uvloop",
    )  # fmt: skip


class _Server(uvicorn.Server):
    """Says where it listens, once it does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for server in self.servers:
            for listener in server.sockets:
                host, port = listener.getsockname()[:2]
                shown = f"[{host}]" if ":" in host else host
                print(f"Listening on http://{shown}:{port}", flush=True)
