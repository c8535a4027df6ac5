"""Cut a very long text where its tokens part anyway, so that memory follows a piece and not the document.

The tokenizers library holds some 150 to 400 bytes for each character of the text that it encodes: 1.5 GB for 10 MB. A
tokenizer that splits text into words first gives the same ids when the text is cut between two words and the parts
are encoded apart. Whether a place is such a cut depends on the tokenizer, so each is tried: the text around it must
give the same ids whole and in two parts. Where no place passes (a tokenizer that puts a space before every text, a
text without line breaks), the rest stays one piece.
"""

import re
from collections.abc import Callable, Sequence
from itertools import islice

PIECE_CHARACTERS = 1 << 17
_AROUND = 512
_TRIED = 8
_LINE_START = re.compile(r"(?<=\w\n)(?=\w)|(?<=[.,;:)\]}>]\n)(?=\w)")

Encode = Callable[[Sequence[str]], list[list[int]]]


def cut_text(text: str, encode: Encode, limit: int = PIECE_CHARACTERS) -> list[str]:
    """Cut a text into pieces whose ids, one after the other, are the text's.

    Args:
        text: of any length.
        encode: ids of each of some texts, without special tokens.
        limit: characters that a piece should not exceed; a piece may, where there is no place to cut it.

    Returns:
        The pieces in order; together they are the text.
    """
    pieces, start = [], 0
    while len(text) - start > limit:
        cut = _find_cut(text, start + limit // 2, encode)
        if cut is None:
            break
        pieces.append(text[start:cut])
        start = cut
    return [*pieces, text[start:]]


def _find_cut(text: str, first: int, encode: Encode) -> int | None:
    """The first place from `first` on where the tokens of both sides do not depend on each other."""
    for match in islice(_LINE_START.finditer(text, first), _TRIED):
        cut = match.start()
        left, right = text[cut - _AROUND : cut], text[cut : cut + _AROUND]
        whole_ids, left_ids, right_ids = encode([left + right, left, right])
        if whole_ids == left_ids + right_ids:
            return cut
    return None
