"""What to ask a server for log-probs, and how to read its answer: three protocols, each checked entry by entry.

`pooling`: vLLM with this library's plug-in; base64 of little-endian float32, one row per token, log-prob first.
`prompt_logprobs`: vLLM's addition to /v1/completions; per token a table from token id to log-prob and rank.
`echo`: /v1/completions that repeats the prompt with its log-probs, as OpenAI's once did.

Invariant: an answer becomes scores only when it has one finite log-prob for each token but the first, and the tokens,
where it names them, are those that were sent. Servers that only claim a protocol leave log-probs out without a word.

Shapes: K scores per token in an answer of `pooling`.
"""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from curator.data import Feature, FloatArray, IntArray, TokenScores

ProtocolName = Literal["pooling", "prompt_logprobs", "echo"]
Column = Literal["logprob", "entropy", "rank"]

_LOWEST_LOGPROB = -9999.0  # what vLLM writes for minus infinity
_HIGHEST_LOGPROB = 1e-3  # a sum of rounded probabilities may pass 1 by so much
_WRITTEN_ID = "token_id:"


@dataclass(frozen=True)
class Dialect:
    """One way of asking.

    Attributes:
        protocol: see the module.
        sends: token ids, or text that becomes those ids.
        max_tokens: `echo`: tokens to generate; 0 where the server allows it.
        written_ids: `echo`: ask for tokens as ids, so that they can be checked.
        columns: `pooling`: what each of the K scores of a token is.
    """

    protocol: ProtocolName
    sends: Literal["ids", "text"] = "ids"
    max_tokens: int = 1
    written_ids: bool = False
    columns: tuple[Column, ...] = ()

    @property
    def name(self) -> str:
        """For `engine_version`."""
        return self.protocol + (" of text" if self.sends == "text" else "")

    @property
    def path(self) -> str:
        """Where to send it."""
        return "/pooling" if self.protocol == "pooling" else "/v1/completions"


class _Answer(BaseModel):
    model_config = ConfigDict(strict=True)


_Shape = TypeVar("_Shape", bound=_Answer)


class _PoolingItem(_Answer):
    index: int
    data: str


class _PoolingAnswer(_Answer):
    data: list[_PoolingItem]


class _Entry(_Answer):
    logprob: float
    rank: int | None = None


class _Echoed(_Answer):
    tokens: list[str] | None = None
    token_logprobs: list[float | None]


class _Choice(_Answer):
    prompt_logprobs: list[dict[int, _Entry] | None] | None = None
    logprobs: _Echoed | None = None


class _Usage(_Answer):
    prompt_tokens: int | None = None


class _Completion(_Answer):
    choices: list[_Choice]
    usage: _Usage | None = None


def write_request(dialect: Dialect, model: str, prompts: Sequence[list[int] | str]) -> dict[str, Any]:
    """The JSON to send for prompts, more than one only for `pooling`."""
    if dialect.protocol == "pooling":
        return {
            "model": model,
            "task": "token_classify",
            "input": list(prompts),
            "encoding_format": "base64",
            "embed_dtype": "float32",
            "endianness": "little",
        }
    request = {"model": model, "prompt": list(prompts), "max_tokens": dialect.max_tokens, "temperature": 1}
    if dialect.protocol == "prompt_logprobs":
        return request | {"prompt_logprobs": 0}
    return (
        request | {"echo": True, "logprobs": 1} | ({"return_tokens_as_token_ids": True} if dialect.written_ids else {})  # nosec B105  # a flag
    )


def read_answer(
    dialect: Dialect, content: bytes, sequences: Sequence[IntArray], features: tuple[Feature, ...]
) -> list[TokenScores]:
    """Scores from the body of an answer.

    Args:
        dialect: how it was asked.
        content: the body.
        sequences: what was asked for, shape (T,) each, T at least 2.
        features: what to give besides log-probs; the dialect has them.

    Returns:
        Scores in the order of the sequences.

    Raises:
        ValueError: says, in words, what is wrong with the answer.
    """
    if dialect.protocol == "pooling":
        items = _read_items(content, len(sequences))
        return [_read_rows(dialect, *pair, features) for pair in zip(items, sequences, strict=True)]
    [ids_T] = sequences
    answer = _parse(_Completion, content)
    if len(answer.choices) != 1:
        raise ValueError(f"it holds {len(answer.choices)} choices, not 1")
    told = answer.usage.prompt_tokens if answer.usage else None
    if told is not None and told != len(ids_T):
        raise ValueError(f"it counts {told} tokens in a prompt of {len(ids_T)}: the server's tokenizer is another one")
    if dialect.protocol == "echo":
        return [_read_echo(dialect, answer.choices[0].logprobs, ids_T)]
    return [_read_tables(answer.choices[0].prompt_logprobs, ids_T, features)]


def name_columns(content: bytes, length: int) -> tuple[Column, ...]:
    """Tell the columns of a pooling answer from a probe's values: a rank is whole and at least 1, an entropy is not.

    The server's `token_scores` decides what they are, and no answer says so.

    Args:
        content: the body of the answer to one prompt.
        length: tokens of that prompt.

    Raises:
        ValueError: a column is neither, or two are the same.
    """
    rows_TK = _decode_rows(_read_items(content, 1)[0], length)
    names: list[Column] = ["logprob"]
    for column_T in rows_TK[1:, 1:].T:
        if not (column_T >= 0).all():
            raise ValueError("its rows hold a score that is neither an entropy nor a rank")
        names.append("rank" if (column_T >= 1).all() and (column_T == np.round(column_T)).all() else "entropy")
    if len(set(names)) != len(names):
        raise ValueError(f"its rows hold {', '.join(names)}, one of them twice")
    return tuple(names)


def _parse(kind: type[_Shape], content: bytes) -> _Shape:
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in fault["loc"])
        begins = content[:60].decode("utf-8", "replace")
        raise ValueError(f"{place or 'it'}: {fault['msg']} (it begins {begins!r})") from None


def _read_items(content: bytes, count: int) -> list[bytes]:
    items = {item.index: item.data for item in _parse(_PoolingAnswer, content).data}
    if sorted(items) != list(range(count)):
        raise ValueError(f"it holds items {sorted(items)[:8]} for {count} prompts")
    try:
        return [base64.b64decode(items[index], validate=True) for index in range(count)]
    except binascii.Error as error:
        raise ValueError(f"an item is not base64: {error}") from None


def _decode_rows(item: bytes, length: int) -> npt.NDArray[np.float32]:
    """Rows (T, K) of one item."""
    if not item or len(item) % (4 * length):
        raise ValueError(f"an item has {len(item)} bytes, which is no number of float32 rows for {length} tokens")
    return np.frombuffer(item, "<f4").reshape(length, -1)


def _read_rows(dialect: Dialect, item: bytes, ids_T: IntArray, features: tuple[Feature, ...]) -> TokenScores:
    rows_TK = _decode_rows(item, len(ids_T))
    if rows_TK.shape[1] != len(dialect.columns):
        raise ValueError(f"it has {rows_TK.shape[1]} scores per token, not {len(dialect.columns)} as at the start")
    if not np.isfinite(rows_TK[1:]).all():
        t = 1 + int(np.flatnonzero(~np.isfinite(rows_TK[1:]).all(1))[0])
        raise ValueError(f"it has {rows_TK[t].tolist()} for token {t}, which is not finite")
    found = {name: rows_TK[:, k] for k, name in enumerate(dialect.columns)}
    return _make_scores(found["logprob"][1:], {name: found[name][1:] for name in features})


def _read_tables(
    tables: list[dict[int, _Entry] | None] | None, ids_T: IntArray, features: tuple[Feature, ...]
) -> TokenScores:
    if tables is None:
        raise ValueError("it has no prompt_logprobs")
    _check_count(len(tables), len(ids_T), "prompt_logprobs")
    _check_first(tables[0])
    entries: list[_Entry] = []
    for t in range(1, len(ids_T)):
        entry = (tables[t] or {}).get(int(ids_T[t]))
        if entry is None:
            raise ValueError(f"its prompt_logprobs has {sorted(tables[t] or {})} for token {t}, which is {ids_T[t]}")
        entries.append(entry)
    ranks = [entry.rank for entry in entries if entry.rank is not None]
    if "rank" in features and len(ranks) != len(entries):
        raise ValueError("its prompt_logprobs has no rank")
    return _make_scores([entry.logprob for entry in entries], {"rank": ranks} if "rank" in features else {})


def _read_echo(dialect: Dialect, echoed: _Echoed | None, ids_T: IntArray) -> TokenScores:
    if echoed is None:
        raise ValueError("it has no logprobs")
    _check_count(len(echoed.token_logprobs) - dialect.max_tokens, len(ids_T), "logprobs.token_logprobs")
    _check_first(echoed.token_logprobs[0])
    if dialect.written_ids:
        written = [f"{_WRITTEN_ID}{token}" for token in ids_T]
        theirs = (echoed.tokens or [])[: len(ids_T)]
        if theirs != written:
            t = next(
                (t for t, pair in enumerate(zip(theirs, written, strict=False)) if pair[0] != pair[1]), len(theirs)
            )
            raise ValueError(f"its logprobs.tokens has {theirs[t : t + 1]} for token {t}, which is {ids_T[t]}")
    values = echoed.token_logprobs[1 : len(ids_T)]
    return _make_scores([np.nan if value is None else value for value in values], {})


def _check_count(found: int, wanted: int, what: str) -> None:
    if found != wanted:
        raise ValueError(f"its {what} has entries for {found} tokens, not {wanted}")


def _check_first(value: object) -> None:
    """Nothing precedes token 0; some servers write 0 for that."""
    if value:
        raise ValueError("it has a log-prob for token 0: the server puts tokens of its own before the prompt")


def _make_scores(
    logprobs: Sequence[float] | FloatArray, features: dict[Feature, Sequence[float] | FloatArray]
) -> TokenScores:
    """Scores of tokens 1 to T - 1 with a NaN in front; refuses what is no log-probability."""
    values = np.asarray(logprobs, np.float64)
    bad = np.flatnonzero(~((values > _LOWEST_LOGPROB) & (values <= _HIGHEST_LOGPROB)))
    if len(bad):
        raise ValueError(f"it has log-prob {values[bad[0]]} for token {bad[0] + 1}")
    named: dict[str, FloatArray] = {f"{name}_T": _behind_nan(column) for name, column in features.items()}
    return TokenScores(_behind_nan(np.minimum(values, 0.0)), **named)


def _behind_nan(values: Sequence[float] | FloatArray) -> FloatArray:
    return np.concatenate([np.full(1, np.nan, np.float32), np.asarray(values, np.float32)])
