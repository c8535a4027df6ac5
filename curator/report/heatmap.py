"""A document as a token heat map: every token of the text, kept or dropped, coloured by its score.

Kept tokens are <b>, dropped ones <s>, unscored ones <u>: the difference is in the HTML itself and survives without
colour, CSS or script. A character that several tokens share (an emoji is often four byte-level tokens) is shown
once, by a group that holds all its tokens. Numbers lie in one attribute as compact JSON for the report's script, and
hold nothing of the text.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt

from curator.data import FloatArray, IntArray
from curator.errors import OutputError
from curator.report.visible_text import show_attribute, show_text

LEVELS = 5
LEVEL_EDGES = (0.08, 0.25, 0.5, 0.85)
"""Where colour levels 1 to 5 meet, as parts of the scale's spread. The script holds the same numbers."""


@dataclass(frozen=True)
class HeatScale:
    """What colours mean, the same for all documents of a report.

    Attributes:
        centre: the score without colour: the cut, or 0 where there is none.
        spread: distance from the centre, in the score's unit (mostly nats), with the strongest colour.
        loss_max: the loss in nats with the strongest colour.
        weight_max: the weight with the strongest colour.
        is_cut: whether the centre is a cut.
    """

    centre: float = 0.0
    spread: float = 2.0
    loss_max: float = 8.0
    weight_max: float = 2.0
    is_cut: bool = False


def render_heatmap(
    *,
    text: str,
    token_bytes_T: IntArray,
    weights_T: FloatArray,
    score_T: FloatArray,
    logprobs: Mapping[str, FloatArray],
    scale: HeatScale | None = None,
    first_token: int = 0,
    label: str = "document",
) -> str:
    """Render one document, or an excerpt that begins at token `first_token`.

    Args:
        text: the text that the tokens cover.
        token_bytes_T: UTF-8 bytes of text that each token covers, 0 for added specials.
        weights_T: token weights; above 0 means kept.
        score_T: the policy's score, NaN where unscored.
        logprobs: per model, shape (T,), in nats, NaN where unscored.
        scale: what the colours mean.
        first_token: number of the first token in its document.
        label: what a screen reader calls the document.

    Returns:
        HTML of one <div class="heat">, whose text content is the text as `visible_text.as_shown` gives it.

    Raises:
        OutputError: arrays of different lengths, or tokens that do not partition the text.
    """
    scale = scale or HeatScale()
    encoded = _encode(text, token_bytes_T, {"weights": weights_T, "score": score_T, **logprobs})
    stops = find_group_stops(encoded, token_bytes_T)
    spans = _render_spans(encoded, stops, token_bytes_T, weights_T, score_T, scale)
    facts = json.dumps(_collect_facts(stops, weights_T, score_T, logprobs, scale, first_token), separators=(",", ":"))
    return (
        f'<div class="heat" data-facts="{escape(facts)}"><div class="tokens" role="group" dir="auto"'
        f' aria-label="{show_attribute(label)}">{spans}</div></div>'
    )


def _render_spans(
    encoded: bytes,
    stops: npt.NDArray[np.int64],
    token_bytes_T: IntArray,
    weights_T: FloatArray,
    score_T: FloatArray,
    scale: HeatScale,
) -> str:
    """One element for each group of tokens; the token of the highest weight decides how it looks."""
    tags_T = np.where(weights_T > 0, "b", np.where(np.isnan(score_T), "u", "s"))
    classes_T = score_classes(score_T, scale)
    ends_T = np.cumsum(token_bytes_T)
    parts: list[str] = []
    begin = first = 0
    for stop, end in zip(stops.tolist(), ends_T[stops - 1].tolist(), strict=True):
        strongest = first if stop == first + 1 else first + int(np.argmax(weights_T[first:stop]))
        piece = show_text(encoded[begin:end].decode())
        tag, css = tags_T[strongest], (classes_T[strongest] + ("" if piece else " sp")).lstrip()
        parts.append(f'<{tag} class="{css}">{piece}</{tag}>' if css else f"<{tag}>{piece}</{tag}>")
        begin, first = end, stop
    return "".join(parts)


def find_group_stops(encoded: bytes, token_bytes_T: IntArray) -> npt.NDArray[np.int64]:
    """Token numbers where a group of tokens that share characters ends: one past its last token, in rising order.

    A group ends where its last token's last byte ends a character of `encoded` (UTF-8).
    """
    starts_character = np.append((np.frombuffer(encoded, np.uint8) & 0xC0) != 0x80, True)
    return np.flatnonzero(starts_character[np.cumsum(token_bytes_T)]) + 1


def score_classes(score_T: FloatArray, scale: HeatScale) -> list[str]:
    """CSS class of each score: p1 to p5 above the centre, n1 to n5 below, none where unscored."""
    distance_T = np.nan_to_num(score_T, nan=0.0, posinf=1e6, neginf=-1e6) - scale.centre
    level_T = 1 + np.searchsorted(LEVEL_EDGES, np.abs(distance_T) / scale.spread)
    names = np.array([[f"n{level}", f"p{level}"] for level in range(1, LEVELS + 1)])
    names_T = names[level_T - 1, (distance_T >= 0).astype(int)]
    return np.where(np.isnan(score_T), "", names_T).tolist()  # type: ignore[no-any-return]


def _encode(text: str, token_bytes_T: IntArray, arrays: Mapping[str, FloatArray]) -> bytes:
    encoded = text.encode()
    covered = int(token_bytes_T.sum())
    if covered != len(encoded) or np.any(token_bytes_T < 0):
        raise OutputError(f"token_bytes cover {covered} of the text's {len(encoded)} bytes; they must partition it")
    for name, array_T in arrays.items():
        if array_T.shape != token_bytes_T.shape:
            raise OutputError(f"{name} has shape {array_T.shape}, token_bytes {token_bytes_T.shape}; they must agree")
    return encoded


def _collect_facts(
    stops: npt.NDArray[np.int64],
    weights_T: FloatArray,
    score_T: FloatArray,
    logprobs: Mapping[str, FloatArray],
    scale: HeatScale,
    first_token: int,
) -> dict[str, object]:
    """What the script shows of each token; `groups` is missing where every group is one token."""
    facts: dict[str, object] = {
        "first": first_token,
        "cut": round(scale.centre, 3) if scale.is_cut else None,
        "lossMax": scale.loss_max,
        "weightMax": scale.weight_max,
        "weight": _round(weights_T),
        "score": _round(score_T),
        "loss": {name: _round(-logprobs_T) for name, logprobs_T in logprobs.items()},
    }
    if len(stops) < len(weights_T):
        facts["groups"] = np.diff(stops, prepend=0).tolist()
    return facts


def _round(values_T: FloatArray) -> list[float | None]:
    # JSON knows neither NaN nor infinity; no score that a reader could tell apart lies beyond a million.
    clipped = np.round(np.clip(values_T.astype(np.float64), -1e6, 1e6), 3) + 0.0  # -0 becomes 0
    return [None if value != value else value for value in clipped.tolist()]
