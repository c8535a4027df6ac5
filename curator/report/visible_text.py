"""Show any text inside HTML as text: nothing in it becomes markup, nothing in it is invisible.

The text content of the HTML equals the original, character by character, with these exceptions, because HTML cannot
carry them or no font shows them: NUL and the other C0 controls but tab, line feed and carriage return become their
Unicode control pictures (U+2400 + code), DEL becomes U+2421, and C1 controls (U+0080 to U+009F) become U+2426.
`as_shown` is that mapping. Markers for line ends, tabs and invisible characters are empty elements that CSS fills,
so that copied text does not hold them.
"""

import re
from html import escape

_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n\r"}
_PICTURES |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0x2426)

_BIDI = "\u202a-\u202e\u2066-\u2069"
_INVISIBLE = (
    f"\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff{_BIDI}"
)
_PLAIN = re.compile(r"[\w .,:;()\-]*", re.ASCII)
_MARKED = re.compile(f"[\t\r\n{_INVISIBLE}]")
_MARKERS = {
    "\n": '<i class="lf"></i>\n',
    "\t": '<i class="tab"></i>\t',
    "\r": '<i class="cr"></i>&#13;',  # as a reference: HTML would turn a bare one into a line feed
}


def as_shown(text: str) -> str:
    """The text with its control characters replaced by pictures; of the same length."""
    return text.translate(_PICTURES)


def show_text(text: str) -> str:
    """HTML whose text content is `as_shown(text)`."""
    if _PLAIN.fullmatch(text):  # most tokens
        return text
    return _MARKED.sub(_mark, escape(as_shown(text), quote=False))


def _mark(match: re.Match[str]) -> str:
    character = match.group()
    # A bidi control acts until its paragraph ends: isolated by CSS, it cannot reorder what follows.
    return _MARKERS.get(character) or f'<i class="inv"></i><i class="iso">{character}</i>'
