"""Small corpora that tenants upload: `<data-dir>/uploads/<tenant>/<upload id>/<file name>`, and a record beside each.

The folders are the truth; no table repeats them. A file is received in a folder with another name, which is renamed
when the file is whole, its digest is right, it is on the disk and the tenant's quota holds it.

Invariant: whoever lists or opens uploads sees whole ones only, and nothing is left of one that failed. What a killed
service leaves is locked by nobody, and is removed by `clear_abandoned`.
"""

import base64
import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pydantic import Field

from curator.data import StrictModel
from curator.job_directory import new_id, now
from service.problems import Problem
from service.settings import Settings

UPLOAD_ID_PATTERN = r"^upl_[0-9a-hjkmnp-tv-z]{26}$"
FILENAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,86}\.(?:(?:jsonl|ndjson|json|txt)(?:\.gz|\.zst)?|parquet)$"
"""Plain names with an extension that a corpus reader knows; at most 100 characters."""

UPLOAD_URI = re.compile(rf"upload://(?P<id>{UPLOAD_ID_PATTERN[1:-1]})/(?P<filename>{FILENAME_PATTERN[1:-1]})", re.ASCII)
"""How a spec names an upload."""

_RECORD = ".upload.json"
_RECEIVING = ".receiving-"
_TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}", re.ASCII)
_DIGEST = re.compile(r"sha-256=:([A-Za-z0-9+/]{43}=):(?:;.*)?", re.IGNORECASE | re.DOTALL)
_YOUNG_S = 60.0


class Upload(StrictModel):
    """One uploaded file; this record lies beside it."""

    id: str = Field(pattern=UPLOAD_ID_PATTERN)
    filename: str = Field(description="name of the file")
    bytes: int = Field(ge=0, description="size of the file")
    sha256: str = Field(description="digest of the file in lowercase hex")
    created_at: str = Field(description="when it was complete, ISO 8601")


def tenant_folder(settings: Settings, tenant: str) -> Path:
    """Where a tenant's uploads are: a folder of its name, or for a name that is no plain one, of its digest."""
    if _TENANT.fullmatch(tenant):
        return settings.uploads_dir / tenant
    return settings.uploads_dir / ("_" + hashlib.sha256(tenant.encode(errors="surrogatepass")).hexdigest()[:40])


def find_upload(settings: Settings, tenant: str, upload_id: str) -> Path | None:
    """The file of an upload; None if the tenant has none of that id."""
    folder = tenant_folder(settings, tenant)
    upload = _read(folder, upload_id)
    return None if upload is None else folder / upload.id / upload.filename


def get_upload(settings: Settings, tenant: str, upload_id: str) -> Upload:
    """One of a tenant's uploads; Problem 404 if there is none, which is also the answer for another tenant's."""
    upload = _read(tenant_folder(settings, tenant), upload_id)
    if upload is None:
        raise Problem(404, "no_upload", f"there is no upload {upload_id!r}")
    return upload


def list_uploads(settings: Settings, tenant: str, limit: int, before: str | None = None) -> list[Upload]:
    """Up to `limit` of a tenant's uploads, newest first; `before` is the id to go on from."""
    folder = tenant_folder(settings, tenant)
    ids = sorted((name for name in _names(folder) if before is None or name < before), reverse=True)
    found: list[Upload] = []
    for upload_id in ids:
        upload = _read(folder, upload_id)
        if upload is not None:
            found.append(upload)
        if len(found) == limit:
            break
    return found


def delete_upload(settings: Settings, tenant: str, upload_id: str, in_use: Callable[[Path], bool]) -> None:
    """Remove an upload.

    Args:
        settings: say where uploads are.
        tenant: whose it is.
        upload_id: which one.
        in_use: whether a job that has not ended reads this file.

    Raises:
        Problem: 404 there is none, 409 it is in use.
    """
    upload = get_upload(settings, tenant, upload_id)
    folder = tenant_folder(settings, tenant)
    if in_use(folder / upload.id / upload.filename):
        detail = f"upload {upload_id} is read by a job that has not ended; cancel the job or wait for it"
        raise Problem(409, "upload_in_use", detail)
    leaving = folder / f"{_RECEIVING}{new_id('upl')}"
    try:
        os.rename(folder / upload.id, leaving)  # gone at once for every reader, whatever stops the rest
    except FileNotFoundError as error:
        raise Problem(404, "no_upload", f"there is no upload {upload_id!r}") from error
    shutil.rmtree(leaving, ignore_errors=True)


def clear_abandoned(settings: Settings) -> None:
    """Remove what killed services left half received; what a living one receives is locked and stays."""
    for folder in settings.uploads_dir.glob(f"*/{_RECEIVING}*"):
        with suppress(OSError), _locked(folder, wait=False):
            if time.time() - folder.stat().st_mtime > _YOUNG_S:
                shutil.rmtree(folder, ignore_errors=True)


# ------------------------------------------------------------------------------------------------ receiving


class Receiver:
    """An upload under way: takes blocks, then keeps the file if all is well."""

    def __init__(self, settings: Settings, tenant: str, filename: str, expected: bytes | None, file: BinaryIO) -> None:
        self._settings, self._tenant, self._filename = settings, tenant, filename
        self._expected, self._file = expected, file
        self._digest, self._bytes = hashlib.sha256(), 0
        self._room = settings.upload_quota_bytes - _used_bytes(tenant_folder(settings, tenant))

    def take(self, block: bytes) -> None:
        """Write the next part; Problem 413 when the file or the tenant's uploads become too large."""
        self._bytes += len(block)
        if self._bytes > self._settings.max_upload_bytes:
            raise too_large(self._settings)
        if self._bytes > self._room:
            raise self._over_quota()
        self._digest.update(block)
        self._file.write(block)

    def keep(self) -> Upload:
        """Make the upload visible; Problem 400 if it is empty or not what its digest says, 413 over the quota."""
        if not self._bytes:
            raise Problem(400, "empty_body", "the body is empty; send the file's bytes, with curl --data-binary @FILE")
        if self._expected is not None and self._digest.digest() != self._expected:
            found = base64.b64encode(self._digest.digest()).decode()
            detail = f"the body received has sha-256=:{found}:, not the digest that was sent; send it again"
            raise Problem(400, "digest_mismatch", detail)
        upload = Upload(
            id=new_id("upl"), filename=self._filename, bytes=self._bytes, sha256=self._digest.hexdigest(),
            created_at=now(),
        )  # fmt: skip
        self._file.flush()
        os.fsync(self._file.fileno())
        folder, target = Path(self._file.name).parent, tenant_folder(self._settings, self._tenant)
        _write_synced(folder / _RECORD, upload.model_dump_json().encode())
        _sync_folder(folder)
        with _locked(target, wait=True):  # of uploads that end together, only those that fit are kept
            kept = sum(_folder_bytes(target / name) for name in _names(target))
            if kept + self._bytes > self._settings.upload_quota_bytes:
                raise self._over_quota()
            os.rename(folder, target / upload.id)
            _sync_folder(target)
        return upload

    def _over_quota(self) -> Problem:
        quota = self._settings.upload_quota_bytes
        return Problem(
            413,
            "quota_exceeded",
            f"this tenant's uploads would exceed {quota:,} bytes; delete some that are not needed",
        )


@contextmanager
def receive(settings: Settings, tenant: str, filename: str, expected: bytes | None) -> Iterator[Receiver]:
    """Receive one file; unless `keep` was called and went well, nothing is left of it.

    Args:
        settings: say where uploads are and how large they may be.
        tenant: whose it is.
        filename: a name that FILENAME_PATTERN allows.
        expected: the SHA-256 that the sender has promised, if any.

    Raises:
        Problem: 422 for another name, 507 when the disk is full; and what the Receiver raises.
    """
    if not re.fullmatch(FILENAME_PATTERN[1:-1], filename, re.ASCII):
        detail = f"filename {filename!r} is not allowed; use letters, digits, . _ - and an extension such as .jsonl"
        raise Problem(422, "invalid_filename", detail, errors=[{"path": "filename", "message": detail}])
    folder = tenant_folder(settings, tenant) / f"{_RECEIVING}{new_id('upl')}"
    try:
        folder.mkdir(mode=0o700, parents=True)
        with _locked(folder, wait=True), (folder / filename).open("wb") as file:
            yield Receiver(settings, tenant, filename, expected, file)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Problem(507, "no_space", "the service's disk is full; ask the operator") from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # not there any more when the upload was kept


def too_large(settings: Settings) -> Problem:
    """The answer to a file that is larger than the settings allow."""
    most = settings.max_upload_bytes
    return Problem(413, "upload_too_large", f"an upload has at most {most:,} bytes; split the corpus, or compress it")


def read_digest(*headers: str | None) -> bytes | None:
    """The SHA-256 that Repr-Digest or Content-Digest promise (RFC 9530); None if they name none.

    Raises:
        Problem: 400 when one is malformed, or two of them differ.
    """
    found: set[bytes] = set()
    for member in (part.strip() for header in headers if header for part in header.split(",")):
        if member.partition("=")[0].strip().lower() != "sha-256":
            continue  # another algorithm, which a receiver may pass over
        match = _DIGEST.fullmatch(member)
        if match is None:
            raise Problem(400, "invalid_digest", "the digest is malformed; write it as sha-256=:BASE64:")
        found.add(base64.b64decode(match[1]))
    if len(found) > 1:
        raise Problem(400, "invalid_digest", "the headers promise different digests; send one")
    return next(iter(found), None)


# ------------------------------------------------------------------------------------------------ folders


def _names(folder: Path) -> list[str]:
    """Ids of the complete uploads in a tenant's folder."""
    with suppress(FileNotFoundError):
        return [name for name in os.listdir(folder) if re.match(UPLOAD_ID_PATTERN, name)]
    return []


def _read(folder: Path, upload_id: str) -> Upload | None:
    if not re.fullmatch(UPLOAD_ID_PATTERN[1:-1], upload_id, re.ASCII):
        return None
    try:
        return Upload.model_validate_json((folder / upload_id / _RECORD).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None


def _used_bytes(folder: Path) -> int:
    """What a tenant's uploads take, with those under way."""
    with suppress(FileNotFoundError):
        return sum(_folder_bytes(Path(entry.path)) for entry in os.scandir(folder) if entry.is_dir())
    return 0


def _folder_bytes(folder: Path) -> int:
    total = 0
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name != _RECORD:
                total += entry.stat().st_size
    return total


@contextmanager
def _locked(folder: Path, *, wait: bool) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _write_synced(file: Path, content: bytes) -> None:
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
