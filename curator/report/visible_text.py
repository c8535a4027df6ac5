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
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028\u2029\u2060-\u2065\u206a-\u206f"
    "\u3164\ufeff\uffa0\U000e0000-\U000e007f"
)
_JOINING = re.compile("[\u200c\u200d\ufe00-\ufe0f]+")
"""Characters that shape their neighbours: marked only where a token holds nothing else, to leave words whole."""
_PLAIN = re.compile(r"[\w .,:;()\-]*", re.ASCII)
_MARKED = re.compile(f"[\t\r\n{_INVISIBLE}{_BIDI}]")
_INVISIBLE_MARKER = '<i class="inv"></i>'
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
    if _JOINING.fullmatch(text):
        return _INVISIBLE_MARKER + text
    return _MARKED.sub(_mark, escape(as_shown(text), quote=False))


def show_attribute(text: str) -> str:
    """The text for the inside of a double-quoted attribute."""
    return escape(as_shown(text)).replace("\r", "&#13;")


def _mark(match: re.Match[str]) -> str:
    character = match.group()
    if "\u202a" <= character <= "\u202e" or "\u2066" <= character <= "\u2069":
        # It acts until its paragraph ends: isolated by CSS, it cannot reorder what follows.
        return f'{_INVISIBLE_MARKER}<i class="iso">{character}</i>'
    return _MARKERS.get(character) or _INVISIBLE_MARKER + character
