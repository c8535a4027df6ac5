"""API keys and browser sessions: made, stored as digests, looked up.

A key is `tc_`, 8 characters that name it, 32 that are secret (160 bits), and 6 of checksum, so that a scanner can tell
a leaked key from noise and a typing error is known without a query. Only its SHA-256 is stored.
"""

import hashlib
import hmac
import secrets
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from service.database import reading, writing
from service.tables import keys, sessions

Scope = Literal["read", "write", "admin", "metrics"]
FIRST_SCOPES: tuple[Scope, ...] = ("read", "write", "admin")
"""Of the key that is shown at the first start; `admin` reads the figures, too."""
TENANT_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"
_PREFIX = "tc_"
_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
_NAME, _SECRET, _CHECK = 8, 32, 6
_REMEMBER_S, _REMEMBERED = 2.0, 10_000


@dataclass(frozen=True)
class Key:
    """What is known of a key; never the key itself."""

    id: str
    tenant: str
    name: str
    scopes: tuple[Scope, ...]
    created_at: float
    expires_at: float | None
    revoked_at: float | None

    @property
    def valid(self) -> bool:
        """Neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or time.time() < self.expires_at)


class KeyStore:
    """The tables of keys and sessions."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._recent: dict[str, tuple[Key, float]] = {}

    def create(
        self, tenant: str, name: str, scopes: Iterable[Scope], expires_at: float | None = None
    ) -> tuple[Key, str]:
        """A new key, and its text, which nobody can read again."""
        key_id = _random(_NAME)
        body = _PREFIX + key_id + _random(_SECRET)
        text = body + _checksum(body)
        key = Key(key_id, tenant, name, tuple(scopes), time.time(), expires_at, None)
        with writing(self._engine) as connection:
            connection.execute(
                keys.insert().values(
                    id=key_id, tenant=tenant, name=name, sha256=_digest(text), scopes=list(key.scopes),
                    created_at=key.created_at, expires_at=expires_at,
                )
            )  # fmt: skip
        return key, text

    def recent(self, text: str) -> Key | None:
        """A key that was found a moment ago, without asking the database: another service's revoking takes 2 s."""
        key, until_s = self._recent.get(_digest(text), (None, 0.0))
        return key if key is not None and time.monotonic() < until_s and key.valid else None

    def find(self, text: str) -> Key | None:
        """The valid key with this text, compared in constant time; None if there is none."""
        key = self.recent(text) or self._look_up(text)
        if key is not None:
            self._remember(_digest(text), key)
        return key

    def _remember(self, digest: str, key: Key) -> None:
        if digest not in self._recent or time.monotonic() >= self._recent[digest][1]:
            if len(self._recent) >= _REMEMBERED:
                self._recent.clear()
            self._recent[digest] = (key, time.monotonic() + _REMEMBER_S)

    def _look_up(self, text: str) -> Key | None:
        body, check = text[:-_CHECK], text[-_CHECK:]
        if len(text) != len(_PREFIX) + _NAME + _SECRET + _CHECK or not hmac.compare_digest(
            check.encode(), _checksum(body).encode()
        ):
            return None
        key_id = text[len(_PREFIX) : len(_PREFIX) + _NAME]
        with reading(self._engine) as connection:
            row = connection.execute(sa.select(keys).where(keys.c.id == key_id)).one_or_none()
        if row is None or not hmac.compare_digest(row.sha256, _digest(text)):
            return None
        key = _key(row)
        return key if key.valid else None

    def all(self) -> list[Key]:
        """All keys, oldest first."""
        with reading(self._engine) as connection:
            return [_key(row) for row in connection.execute(sa.select(keys).order_by(keys.c.created_at, keys.c.id))]

    def revoke(self, key_id: str) -> bool:
        """End a key and its sessions at once; False if there is no such key."""
        with writing(self._engine) as connection:
            connection.execute(sessions.delete().where(sessions.c.key_id == key_id))
            update = keys.update().where(keys.c.id == key_id, keys.c.revoked_at.is_(None))
            connection.execute(update.values(revoked_at=time.time()))
            found = connection.execute(sa.select(keys.c.id).where(keys.c.id == key_id)).one_or_none() is not None
        self._recent.clear()
        return found

    def open_session(self, key: Key, hours: float) -> str:
        """A new session of a key; returns its token, of which only the digest is stored."""
        token = secrets.token_urlsafe(32)
        moment = time.time()
        with writing(self._engine) as connection:
            connection.execute(sessions.delete().where(sessions.c.expires_at < moment))
            connection.execute(
                sessions.insert().values(sha256=_digest(token), key_id=key.id, expires_at=moment + hours * 3600)
            )
        return token

    def find_session(self, token: str) -> Key | None:
        """The key of a living session, if the key is still valid."""
        query = sa.select(keys).join(sessions, sessions.c.key_id == keys.c.id)
        query = query.where(sessions.c.sha256 == _digest(token), sessions.c.expires_at > time.time())
        with reading(self._engine) as connection:
            row = connection.execute(query).one_or_none()
        key = None if row is None else _key(row)
        return key if key is not None and key.valid else None

    def close_session(self, token: str) -> None:
        """End a session."""
        with writing(self._engine) as connection:
            connection.execute(sessions.delete().where(sessions.c.sha256 == _digest(token)))


def _key(row: sa.Row[tuple[object, ...]]) -> Key:
    values = dict(row._mapping)
    values.pop("sha256")
    return Key(**values | {"scopes": tuple(values["scopes"])})


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _checksum(body: str) -> str:
    number = zlib.crc32(body.encode())
    return "".join(_ALPHABET[number >> 5 * position & 31] for position in range(_CHECK))
