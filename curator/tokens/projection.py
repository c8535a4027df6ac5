"""Log-probs of one tokenisation laid onto the tokens of another, for models with a tokenizer of their own.

The two tokenisations cut the same bytes at different places. Where both cut they meet, and between two neighbouring
meetings lies a span: some source tokens on one side, some target tokens on the other, the same bytes. The chain rule
makes the sum of the source's log-probs there the log-prob of those bytes given what comes before. It is shared over
the target tokens by their bytes: a span of one target token gets its exact log-prob, in a longer one the shares are a
convention, their sum is not.

    text     t h e c a t s          source  the|cat|s     log-probs  a b c
    meet         |       |          target  the|c|ats     shares     a (b+c)/4 3(b+c)/4

Tokens that cover no byte:

    the first source token      context (a BOS, or the space put before a text): its score, mostly NaN, is not used
    the first target token      NaN, as nothing comes before it
    the last one of both sides  EOS: the source's log-prob is carried over; NaN if only the target ends with one, and
                                the source's is left out if only the source does
    any other source token      an inserted space: belongs to the span of the byte after it
    any other target token      an inserted space: its share of its span is that of its bytes, 0 nats (certain)

Invariants: float64 throughout; over every span the target's log-probs sum to the source's (to 1e-9 nats); an unscored
(NaN) source token makes its span NaN and no other.

Shapes: S source tokens, T target tokens, K spans.
"""

import numpy as np
import numpy.typing as npt

from curator.errors import ScorerError

Doubles = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


def project_logprobs(
    logprobs_S: npt.NDArray[np.floating], source_bytes_S: npt.NDArray[np.integer], bytes_T: npt.NDArray[np.integer]
) -> Doubles:
    """Share a document's log-probs over the tokens of another tokenisation of it.

    Args:
        logprobs_S: nats, shape (S,); NaN where unscored.
        source_bytes_S: UTF-8 bytes of the text that each source token covers, shape (S,).
        bytes_T: the same of the target tokens, shape (T,).

    Returns:
        Nats, shape (T,); NaN where unscored.

    Raises:
        ScorerError: the tokenisations are not of one text, or there is not one log-prob for each source token.
    """
    if len(logprobs_S) != len(source_bytes_S):
        raise ScorerError(f"{len(logprobs_S)} log-probs for {len(source_bytes_S)} tokens; report this bug")
    ends, span_S, span_T = _find_spans(source_bytes_S, bytes_T)
    if len(bytes_T) == 0:
        return np.empty(0)
    used_S = np.asarray(logprobs_S, np.float64).copy()
    last = float(used_S[-1]) if _ends_with_special(source_bytes_S) else np.nan
    used_S[_outside(source_bytes_S)] = 0
    if len(ends):
        sum_K = np.bincount(span_S, used_S, minlength=len(ends))
        part_T = bytes_T / np.diff(ends, prepend=0)[span_T]  # first, so that a whole span is exactly its sum
        with np.errstate(invalid="ignore"):
            shared_T: Doubles = sum_K[span_T] * part_T
    else:
        shared_T = np.zeros(len(bytes_T))
    if bytes_T[0] == 0:
        shared_T[0] = np.nan
    if _ends_with_special(bytes_T):
        shared_T[-1] = last
    return shared_T


def count_first_span(source_bytes_S: npt.NDArray[np.integer], bytes_T: npt.NDArray[np.integer]) -> int:
    """Target tokens up to the end of the first span: those that a NaN at the document's start can reach.

    At least 1 for a document that is not empty, as its first token has no context.
    """
    _, _, span_T = _find_spans(source_bytes_S, bytes_T)
    if _ends_with_special(bytes_T):
        span_T = span_T[:-1]
    return max(int(np.count_nonzero(span_T == 0)), min(1, len(bytes_T)))


def _find_spans(
    source_bytes_S: npt.NDArray[np.integer], bytes_T: npt.NDArray[np.integer]
) -> tuple[Indices, Indices, Indices]:
    """Byte ends of the spans, shape (K,), rising, and the span of every source and target token."""
    ends_S, ends_T = np.cumsum(source_bytes_S, dtype=np.int64), np.cumsum(bytes_T, dtype=np.int64)
    text_S, text_T = (int(ends[-1]) if len(ends) else 0 for ends in (ends_S, ends_T))
    if text_S != text_T:
        raise ScorerError(
            f"the model's own tokens cover {text_S} bytes, the dataset's {text_T}: they are not of one text; "
            "report this bug with both tokenizers"
        )
    ends = np.intersect1d(ends_S[source_bytes_S > 0], ends_T[bytes_T > 0], assume_unique=True)
    return ends, _locate(ends, ends_S - source_bytes_S), _locate(ends, ends_T - bytes_T)


def _locate(ends: Indices, starts: Indices) -> Indices:
    """The span that holds the byte at each start; the last one for tokens after all bytes."""
    return np.minimum(np.searchsorted(ends, starts, side="right"), max(len(ends) - 1, 0))


def _ends_with_special(token_bytes: npt.NDArray[np.integer]) -> bool:
    """Whether the last token is an EOS: it covers nothing and is not the first."""
    return len(token_bytes) > 1 and token_bytes[-1] == 0


def _outside(source_bytes_S: npt.NDArray[np.integer]) -> list[int]:
    """Source tokens that are no part of the text: a first and a last one without bytes."""
    first = [0] if len(source_bytes_S) and source_bytes_S[0] == 0 else []
    return first + ([len(source_bytes_S) - 1] if _ends_with_special(source_bytes_S) else [])
