"""Which servers engine openai may call: those in `allow_hosts`, compared as scheme, host and port.

No name is resolved and no address is computed: an address is allowed because its own spelling is listed. So a decimal,
octal or IPv6 spelling of a listed or of a private address is just another host. Spellings that parsers read
differently (user information, backslashes, escapes, spaces, other scripts) are refused before anything is compared.
The engine follows no redirects.
"""

import re
from collections.abc import Iterable

from service.admission.refusals import Refused

_ADDRESS = re.compile(
    r"(?P<scheme>https?)://"
    r"(?P<host>[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])"
    r"(?::(?P<port>[1-9][0-9]{0,4}))?"
    r"(?P<path>(?:/[a-z0-9_~.-]+)*/?)",
    re.IGNORECASE | re.ASCII,
)
_PORTS = {"http": 80, "https": 443}
_LONGEST = 2000


def check_host(url: str, allowed: Iterable[str]) -> None:
    """Refuse an address that is not listed; the message never repeats it, as it may hold a password."""
    listed = {origin for entry in allowed if (origin := find_origin(entry)) is not None}
    origin = find_origin(url)
    if origin is None:
        raise Refused(
            "this is no plain address of a server; write it as http://host:8000, without a user name, escapes, "
            "a part after ? or #, or characters outside ASCII"
        )
    if origin not in listed:
        raise Refused(
            f"the server {origin} is not allowed here; use one of {sorted(listed) or '(none)'}, or ask the operator "
            "to list it in allow_hosts"
        )


def find_origin(url: str) -> str | None:
    """`scheme://host:port` in lowercase with the port written out; None for anything but a plain address."""
    match = _ADDRESS.fullmatch(url) if len(url) <= _LONGEST else None
    if match is None or any(part in (".", "..") for part in match["path"].split("/")):
        return None
    scheme, host = match["scheme"].lower(), match["host"].lower()
    port = int(match["port"] or _PORTS[scheme])
    return f"{scheme}://{host}:{port}" if port <= 65535 else None
