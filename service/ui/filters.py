"""How pages write numbers and moments. A missing value is an en dash, never a guess."""

import re
from collections.abc import Callable
from datetime import UTC, datetime

NOTHING = "–"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def exact(value: float | None) -> str:
    """1,234,567."""
    return NOTHING if value is None else f"{value:,.0f}"


def count(value: float | None) -> str:
    """Three figures and a unit: 987, 12.3 K, 1.20 M, 45.6 G, 7.89 T."""
    if value is None:
        return NOTHING
    if abs(value) < 1000:
        return f"{value:,.0f}"
    for unit in ("K", "M", "G", "T"):
        value /= 1000
        if abs(value) < 999.5 or unit == "T":
            break
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:,.{digits}f}\u00a0{unit}"


def share(value: float | None) -> str:
    """60.0%; a part that is small but there never reads as none, nor an almost complete one as all."""
    if value is None:
        return NOTHING
    if 0 < value < 0.001:
        return "<0.1%"
    if 0.999 < value < 1:
        return ">99.9%"
    return f"{value:.1%}"


def duration(seconds: float | None) -> str:
    """0.4 s, 12 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    if seconds is None:
        return NOTHING
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, part_size, part_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            part = whole % size // part_size
            return f"{whole // size} {unit}" + (f" {part} {part_unit}" if part else "")
    return f"{whole} s"


def ago(moment: datetime | None) -> str:
    """How long since, in one unit; the page gives the moment itself beside it."""
    if moment is None:
        return NOTHING
    seconds = (datetime.now(UTC) - moment).total_seconds()
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return "just now"


def iso(moment: datetime) -> str:
    """ISO 8601 in UTC, for machines and for tooltips."""
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def clock(moment: datetime) -> str:
    """Date and time; the script turns it into the reader's time zone."""
    return moment.astimezone(UTC).strftime("%d %b %H:%M UTC")


def hour(moment: datetime) -> str:
    """Time of day; the script turns it into the reader's time zone."""
    return moment.astimezone(UTC).strftime("%H:%M:%S UTC")


def plain(text: str) -> str:
    """Text without a terminal's colours, which Ray puts into its messages."""
    return _COLOURS.sub("", text)


FILTERS: dict[str, Callable[..., str]] = {
    each.__name__: each for each in (exact, count, share, duration, ago, iso, clock, hour, plain)
}
