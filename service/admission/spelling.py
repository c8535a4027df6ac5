"""How the name of a place may be written.

Nothing here looks at a disk. A name is refused when any reader between here and the disk could take it for another
place than the one that it seems to be: through `..`, escapes, look-alike characters, another scheme, or a chain of file
systems. Escapes are never decoded for use; they are decoded here to see what they would become.
"""

import re
import unicodedata
from collections.abc import Iterator
from urllib.parse import unquote

from service.admission.refusals import Refused, quote

REMOTE = re.compile(r"(?:s3|gs)://")
_BUCKET = re.compile(r"(?:s3|gs)://[a-z0-9][a-z0-9._-]{1,221}[a-z0-9](?:/.*)?", re.ASCII | re.DOTALL)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_UNICODE_ESCAPE = re.compile(r"%u[0-9a-f]{4}", re.IGNORECASE)
_MARKS = "*?["
_LONGEST = 4096
_LONGEST_PART = 255
_MOST_DECODINGS = 6
_MOST_STARS = 4
_MOST_FOLDER_STARS = 2


def has_marks(place: str) -> bool:
    """Whether the place is a glob."""
    return any(mark in place for mark in _MARKS)


def fixed_folder(glob: str) -> str:
    """The folder in which a glob begins to look; `/` if that is the topmost one."""
    first = min(glob.index(mark) for mark in _MARKS if mark in glob)
    return glob[:first].rpartition("/")[0] or "/"


def check_spelling(place: str) -> None:
    """Refuse a name that is no absolute path and no s3:// or gs:// URI, or that can be read in two ways."""
    if len(place) > _LONGEST or any(len(part.encode(errors="replace")) > _LONGEST_PART for part in place.split("/")):
        raise Refused(f"{quote(place)} is too long for a path; shorten it")
    if not _is_printable(place) or "\\" in place:
        raise Refused(f"{quote(place)} holds a control character or a backslash; choose another name")
    remote = bool(REMOTE.match(place))
    if not remote and _SCHEME.match(place):
        raise Refused(f"{quote(place)}: this scheme is not allowed; use an absolute path, s3:// or gs://")
    if not remote and (not place.startswith("/") or place.startswith("//")):
        raise Refused(f"{quote(place)} is not an absolute path; write it from the root, such as /data/corpus.jsonl")
    if remote and not _BUCKET.fullmatch(place):
        raise Refused(f"{quote(place)} does not name a bucket; write it as s3://bucket/prefix")
    rest = place.partition("://")[2] if remote else place
    if "::" in rest or "://" in rest:
        raise Refused(f"{quote(place)} chains file systems; name one place")
    if remote and ("//" in rest or "#" in rest or any(part in (".", "..") for part in rest.split("/"))):
        raise Refused(f"{quote(place)} has empty or dotted parts, or a #; name the place itself")
    _check_parts(place, rest)
    for decoded in _decodings(rest, place):
        _check_decoded(place, rest, decoded)


def check_relative(name: str) -> None:
    """Refuse the name of a file within a folder or a hub data set that could leave it."""
    if not name or name.startswith("/"):
        raise Refused(f"{quote(name)} is not a name within the data set; write it relative to it")
    if name.startswith("~") or _SCHEME.match(name):
        raise Refused(f"{quote(name)} leads out of the data set; write it relative to it")
    check_glob(f"/{name}")
    check_spelling(f"/{name}")


def check_glob(place: str) -> None:
    """Refuse patterns that match in exponential time, or that the file systems do not know."""
    parts = place.split("/")
    if any("**" in part and part != "**" for part in parts):
        raise Refused(f"{quote(place)}: ** must stand alone between slashes, such as /data/**/*.jsonl")
    if parts.count("**") > _MOST_FOLDER_STARS or any(part.count("*") > _MOST_STARS for part in parts):
        raise Refused(
            f"{quote(place)} has too many stars; at most {_MOST_FOLDER_STARS} times ** and {_MOST_STARS} stars a name"
        )


def _is_printable(text: str) -> bool:
    return all(unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp") for character in text)


def _check_parts(place: str, text: str) -> None:
    """Refuse `..` and what some reader strips down to it, such as `..;` or a part of three dots."""
    for part in text.split("/"):
        bare = part.strip(" .;:,+&")
        if (not bare and part not in ("", ".")) or part.startswith("..;"):
            raise Refused(f"{quote(place)} has a part {quote(part)}; write the path without it")


def _decodings(text: str, place: str) -> Iterator[str]:
    """What escapes and look-alike characters would turn the text into, step by step."""
    if _UNICODE_ESCAPE.search(text):
        raise Refused(f"{quote(place)} holds an escape of the form %uXXXX; write the character itself")
    for _ in range(_MOST_DECODINGS):
        try:
            decoded = unicodedata.normalize("NFKC", unquote(text, errors="strict"))
        except UnicodeDecodeError as error:
            raise Refused(f"{quote(place)} holds percent escapes that are no UTF-8; write the name itself") from error
        if decoded == text:
            return
        yield decoded
        text = decoded
    raise Refused(f"{quote(place)} is escaped many times over; write the name itself")


def _check_decoded(place: str, text: str, decoded: str) -> None:
    parts = decoded.split("/")
    changed = len(parts) != text.count("/") + 1 or "::" in decoded or "\\" in decoded or not _is_printable(decoded)
    if changed or parts.count(".") > text.split("/").count(".") or decoded.startswith("~"):
        raise Refused(f"{quote(place)} would become another place when decoded; write the name itself")
    _check_parts(place, decoded)
