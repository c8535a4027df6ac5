"""Refusing a tokenizer whose tokens cannot partition text, before any work is done.

A lower-casing tokenizer would fail on nearly every document; that is one error at the start, not a dataset in
quarantine. So texts of many scripts are encoded at load. All are in NFC form: a tokenizer that only composes
characters (Qwen's) passes, and a document that is not in NFC is then refused by itself, with its reason.

Invariant: a tokenizer that passes keeps case, accents, every kind of white space and every script below.
"""

import json
from collections.abc import Mapping
from typing import Any

import tokenizers

from curator.tokens.definition import Definition, list_components

PROBES: Mapping[str, str] = {
    "Latin": "The QUICK brown fox, naïve café — Straße, İstanbul, Øresund",
    "Cyrillic": "Съешь же ещё этих мягких французских булок",
    "Greek": "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
    "Arabic": "مَرْحَبًا بالعالم ١٢٣",
    "Hebrew": "שָׁלוֹם עולם",
    "Devanagari": "नमस्ते दुनिया, क्षत्रिय",
    "Tamil": "வணக்கம் உலகம்",
    "Thai": "สวัสดีชาวโลก ทั้งหลาย",
    "Chinese": "你好，世界。龘𠮷",
    "Japanese": "こんにちは、ﾃｽﾄ カタカナ",
    "Hangul": "안녕하세요 세계",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇨🇭",
    "compatibility forms": "ﬁ ½ Ａ ² … ™",
    "punctuation": "``a'' “b” <<c>> {d} \\e $f_1$ 1,234.50 ##g @@h",
    "leading and trailing spaces": "  two before and two after  ",
    "runs of spaces": "a  b   c         d",
    "tabs and line ends": "\ta\tb\n\n\nc\r\nd \n e\n",
    "control characters": "a\x00b\x01\x7f\x85c",
    "unusual spaces": "a\u00a0b\u2003c\u200bd\ufeffe",
    "private use and the last code point": "\ue000 \U0010fffd",
}
"""Text of each kind, in NFC form."""

_HARMLESS = {"ByteLevel", "Prepend"}  # they respell, and the surfaces undo it


def name_changes(definition: Definition, text: str) -> list[str]:
    """Names of the normaliser's parts that change `text` in a way that its tokens cannot undo."""
    return [
        str(component["type"])
        for component in list_components(definition["normalizer"])
        if component["type"] not in _HARMLESS
        and component.get("pattern") != {"String": " "}
        and _apply(component, text) != text
    ]


def _apply(component: Mapping[str, Any], text: str) -> str:
    """Run one part of a normaliser, through a tokenizer that has nothing else."""
    alone: dict[str, Any] = {
        **{"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": component},
        **{"pre_tokenizer": None, "post_processor": None, "decoder": None},
        "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},  # nosec B105  # a token of a vocabulary
    }
    normalizer = tokenizers.Tokenizer.from_str(json.dumps(alone)).normalizer
    return text if normalizer is None else str(normalizer.normalize_str(text))


def explain_mismatch(definition: Definition, ids: list[int], surfaces: list[bytes], text: str) -> str:
    """Say in words why tokens are not their text; never quotes the text at length.

    Args:
        definition: the tokenizer's parsed tokenizer.json.
        ids: the tokens.
        surfaces: the bytes of each of them.
        text: the text they were made from.
    """
    changes = name_changes(definition, text)
    if changes:
        return f"the tokenizer's normaliser ({', '.join(changes)}) changes it"
    unknown = definition["model"].get("unk_token")
    vocab = definition["model"]["vocab"]
    unknown_id = vocab.get(unknown) if isinstance(vocab, dict) else definition["model"].get("unk_id")
    if unknown_id is not None and unknown_id in ids:
        return "the vocabulary has no token for some of its characters and gives the unknown token"
    joined, raw = b"".join(surfaces), text.encode()
    missing = sorted(set(raw) - set(joined))
    if missing and _is_subsequence(joined, raw):
        return f"the vocabulary has no token for {_list_bytes(missing)}, which the tokenizer drops in silence"
    differing = next((at for at, (a, b) in enumerate(zip(joined, raw, strict=False)) if a != b), None)
    at = min(len(joined), len(raw)) if differing is None else differing
    parts = [str(part["type"]) for part in list_components(definition["pre_tokenizer"])] or ["none"]
    return (
        f"its tokens stand for {len(joined)} bytes and the text has {len(raw)}, first differing at byte {at}: the "
        f"pre-tokeniser ({', '.join(parts)}) or the vocabulary drops or replaces characters"
    )


def _is_subsequence(shorter: bytes, longer: bytes) -> bool:
    """Whether `shorter` is `longer` with bytes left out."""
    remaining = iter(longer)
    return all(byte in remaining for byte in shorter)


def _list_bytes(values: list[int]) -> str:
    named = ", ".join(f"0x{value:02X}" for value in values[:4])
    return f"byte {named}" if len(values) == 1 else f"bytes {named}" + (" and others" if len(values) > 4 else "")
