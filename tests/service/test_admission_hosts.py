"""Which servers engine openai may call; what passes is compared with what the HTTP library would really call."""

import runpy
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator.scorers.openai import find_root
from service.admission.hosts import check_host, find_origin
from service.admission.refusals import Refused

HOSTILE = runpy.run_path(str(Path(__file__).with_name("hostile.py")))
_LISTED = ("http://models.internal:8000", "https://api.example.com")
_ADDRESSES = ("http://[::1]:8000", "http://10.0.0.7", "http://localhost:8000/v1/")


def passes(url: str, *listed: str) -> bool:
    try:
        check_host(url, listed)
    except Refused:
        return False
    return True


def test_no_hostile_address_is_let_through() -> None:
    hostile = {*HOSTILE["other_hosts"]("models.internal", 8000), *HOSTILE["other_hosts"]("api.example.com", 80)}
    hostile -= {"https://api.example.com"}
    assert len(hostile) > 250
    assert [url for url in hostile if passes(url, *_LISTED)] == []
    assert [url for url in hostile if passes(url)] == []


def test_an_address_is_allowed_by_its_own_spelling_alone() -> None:
    for url in HOSTILE["other_hosts"]("models.internal", 8000):
        listed = [origin for origin in (find_origin(url),) if origin is not None]
        assert passes(url, *listed) == bool(listed)
    assert not passes("http://127.0.0.1:8000", "http://localhost:8000", "http://2130706433:8000", "http://[::1]:8000")


@pytest.mark.parametrize(
    "url",
    [
        "http://models.internal:8000", "http://models.internal:8000/", "http://models.internal:8000/v1",
        "HTTP://Models.Internal:8000/v1/", "https://api.example.com", "https://api.example.com:443/v1",
        "http://[::1]:8000/v1", "http://10.0.0.7", "http://10.0.0.7:80/team-a/v1", "http://localhost:8000",
    ],
)  # fmt: skip
def test_listed_servers_pass(url: str) -> None:
    assert passes(url, *_LISTED, *_ADDRESSES)


def test_a_refusal_does_not_repeat_what_may_be_a_password() -> None:
    for url in ("http://user:secret@models.internal:8000", "http://models.internal:8000/?key=secret"):
        with pytest.raises(Refused) as refused:
            check_host(url, _LISTED)
        assert "secret" not in str(refused.value)


_PIECES = st.sampled_from([
     "http", "https", "://", ":", "/", "//", "\\", "@", "#", "?", "%", "%40", ".", "..", "[", "]", "[::1]", ":8000",
     ":443", "models.internal", "api.example.com", "evil", " ", "\t", "\n", "\0", "\u3002", "\uff0f", "\u00ad", ";",
     "&", "v1", "MODELS.internal", "0x7f",
])  # fmt: skip


@given(st.sampled_from(_LISTED), st.lists(_PIECES, max_size=4), st.lists(_PIECES, max_size=4), st.integers(0, 30))
def test_whatever_passes_every_parser_sends_to_a_listed_server(
    listed: str, before: list[str], after: list[str], at: int
) -> None:
    url = listed[:at] + "".join(before) + listed[at:] + "".join(after)
    try:
        check_host(url, _LISTED)
    except Refused:
        return
    sent, standard = httpx.URL(find_root(url)), urlsplit(url)
    for scheme, host, port in (
        (sent.scheme, sent.host, sent.port),
        (standard.scheme, standard.hostname, standard.port),
    ):
        assert f"{scheme}://{host}:{port or {'http': 80, 'https': 443}[scheme]}" in map(find_origin, _LISTED)
    assert not sent.userinfo
