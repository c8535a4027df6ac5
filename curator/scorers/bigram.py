"""A bigram language model, so that everything runs without weights, a GPU or torch.

The shipped model (1,024 byte-level tokens, trained on Python's documentation topics) is a real, if weak, language
model: its scores differ from token to token as a large model's do, and the same ids give the same bits on every run.
The model named `unigram` is the same counts without context: a weaker model over the same tokenizer, to serve as base.

Invariant: every row of the table is a probability distribution, so each token has a finite log-prob.

    V   vocabulary; table_VV[p, n] = log p(n | p)
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt
from pydantic import Field

from curator.data import Feature, FloatArray, IntArray, ModelConfig, ModelIdentity, Scorer, TokenScores
from curator.errors import ScorerError
from curator.scorers.weights import digest_weights

_SHIPPED = Path(__file__).parent / "bigram_model"
_LARGEST_BYTES = 1 << 28
_LARGEST_VOCABULARY = 20_000  # the table has its square of entries, 4 bytes each
_CONTEXT = 8192  # a bigram needs one token of context; the window only bounds what a caller holds at once
_ENGINE_VERSION = "1"  # raise it when the same counts would give other log-probs


class BigramModel(ModelConfig):
    """An interpolated bigram model over a small tokenizer of its own; for tests, trials and documentation."""

    engine: Literal["bigram"] = "bigram"
    model: str = Field(
        default="bigram",
        description="`bigram` or `unigram` (both shipped), or a directory with tokenizer.json and counts.npz",
    )

    def tokenizer_source(self) -> str:
        """The tokenizer.json beside the counts."""
        return str(self._folder() / "tokenizer.json")

    def identify(self) -> ModelIdentity:
        """Check both files and name the model; raises ScorerError when one is missing or unreadable."""
        folder = self._folder()
        for name in ("tokenizer.json", "counts.npz"):
            if not (folder / name).is_file():
                raise ScorerError(
                    f"bigram model {self.model!r} has no {name}: expected {folder / name}; name a directory that "
                    f"holds tokenizer.json and counts.npz, or use the shipped `bigram` or `unigram`"
                )
        counts = _read_counts(folder)
        return ModelIdentity(
            id=self.model,
            revision=self.revision,
            weights_digest=digest_weights([folder / "counts.npz"]),
            engine="bigram",
            engine_version=self._version(),
            dtype="float32",
            context=self.context or _CONTEXT,
            parameters=int(counts["count"].size + counts["unigram"].size),
        )

    def version_here(self, planned: ModelIdentity) -> str | None:
        """As `identify` says."""
        return self._version()

    def weights_here(self) -> str | None:
        """Of the counts as they are now."""
        counts = self._folder() / "counts.npz"
        return digest_weights([counts]) if counts.is_file() else None

    def build(self, identity: ModelIdentity, threads: int) -> Scorer:
        """Build the table of log-probs; `threads` is not used."""
        counts = _read_counts(self._folder())
        table_VV = unigram_table(counts) if self.model == "unigram" else bigram_table(counts)
        return BigramScorer(table_VV, self.features)

    def _version(self) -> str:
        return f"{_ENGINE_VERSION}-{'unigram' if self.model == 'unigram' else 'bigram'}"

    def _folder(self) -> Path:
        return _SHIPPED if self.model in ("bigram", "unigram") else Path(self.model)


def _read_counts(folder: Path) -> Mapping[str, npt.NDArray[np.int64]]:
    path = folder / "counts.npz"
    try:
        with path.open("rb") as stream:
            with ZipFile(stream) as packed:
                if sum(entry.file_size for entry in packed.infolist()) > _LARGEST_BYTES:
                    raise ValueError(f"it unpacks to more than {_LARGEST_BYTES:,} bytes")
            stream.seek(0)
            stored = np.load(stream, allow_pickle=False)
            counts = {name: stored[name].astype(np.int64) for name in ("unigram", "row_sizes", "following", "count")}
        _check_counts(counts)
    except Exception as error:  # zipfile, zlib and numpy raise anything for a damaged file, even MemoryError
        raise ScorerError(
            f"cannot read bigram counts {path}: {error!r}; build them with examples/build_bigram.py"
        ) from error
    return counts


def _check_counts(counts: Mapping[str, npt.NDArray[np.int64]]) -> None:
    """Raise ValueError for counts that are not those of pairs over one vocabulary."""
    size, pairs = counts["unigram"].size, counts["following"].size
    if any(array.ndim != 1 for array in counts.values()) or not 0 < size <= _LARGEST_VOCABULARY:
        raise ValueError(f"{size} tokens are counted; there are lists of 1 to {_LARGEST_VOCABULARY:,}")
    if counts["row_sizes"].size != size or counts["row_sizes"].sum() != pairs or counts["count"].size != pairs:
        raise ValueError(f"the sizes of its rows do not divide {pairs} pairs")
    if any((array < 0).any() for array in counts.values()) or (counts["following"] >= size).any():
        raise ValueError(f"a count is negative, or a token is not among the {size}")


def unigram_table(counts: Mapping[str, npt.NDArray[np.int64]]) -> FloatArray:
    """Log p(n) in every row, shape (V, V): (count + 1/2) / sum, so that no token is impossible."""
    log_p_V = np.log(_unigram(counts)).astype(np.float32)
    return np.tile(log_p_V, (log_p_V.size, 1))


def bigram_table(counts: Mapping[str, npt.NDArray[np.int64]]) -> FloatArray:
    """Log p(n | p) in nats, shape (V, V), with Witten-Bell interpolation.

    p(n | p) = (c(p, n) + k(p) q(n)) / (c(p) + k(p)), where q is the unigram and k(p) the number of distinct tokens
    seen after p (Witten and Bell 1991; Chen and Goodman 1998, section 2.4). A row never seen is the unigram.
    """
    q_V = _unigram(counts)
    size = q_V.size
    previous = np.repeat(np.arange(size), counts["row_sizes"])
    pairs_VV = np.zeros((size, size))
    pairs_VV[previous, counts["following"]] = counts["count"]
    distinct_V = np.maximum(counts["row_sizes"], 1)[:, None]
    total_V = pairs_VV.sum(axis=1, keepdims=True)
    table_VV: FloatArray = np.log((pairs_VV + distinct_V * q_V) / (total_V + distinct_V)).astype(np.float32)
    return table_VV


def _unigram(counts: Mapping[str, npt.NDArray[np.int64]]) -> npt.NDArray[np.float64]:
    smoothed_V = counts["unigram"] + 0.5
    probability_V: npt.NDArray[np.float64] = smoothed_V / smoothed_V.sum()
    return probability_V


class BigramScorer:
    """Looks each pair of neighbouring tokens up in a table; bitwise the same for any batching."""

    def __init__(self, table_VV: FloatArray, features: tuple[Feature, ...] = ()) -> None:
        """Keep the table; entropy and rank tables are built only when asked for."""
        self._size = table_VV.shape[0]
        self._logprobs = table_VV.ravel()
        self._entropy_V = -(np.exp(table_VV) * table_VV).sum(axis=1) if "entropy" in features else None
        self._ranks = _rank_table(table_VV).ravel() if "rank" in features else None

    def score(self, sequences: Sequence[IntArray], on_tokens: Callable[[int], None]) -> list[TokenScores]:
        """Score each sequence; raises ScorerError for an id outside the vocabulary."""
        scores = []
        for number, ids_T in enumerate(sequences):
            scores.append(self._score_one(number, ids_T))
            on_tokens(len(ids_T))
        return scores

    def _score_one(self, number: int, ids_T: IntArray) -> TokenScores:
        if len(ids_T) and not (ids_T.min() >= 0 and ids_T.max() < self._size):
            raise ScorerError(
                f"sequence {number} holds token id {int(ids_T.max())} or {int(ids_T.min())}, outside the bigram "
                f"model's vocabulary of {self._size}; tokenize with the model's own tokenizer"
            )
        previous_T = ids_T[:-1].astype(np.int64)
        pairs_T = previous_T * self._size + ids_T[1:]
        return TokenScores(
            logprobs_T=_after_first(len(ids_T), self._logprobs[pairs_T]),
            entropy_T=None if self._entropy_V is None else _after_first(len(ids_T), self._entropy_V[previous_T]),
            rank_T=None if self._ranks is None else _after_first(len(ids_T), self._ranks[pairs_T]),
        )

    def notes(self) -> dict[str, Any]:
        """Nothing ever happens that a receipt should know."""
        return {}


def _after_first(length: int, values: FloatArray) -> FloatArray:
    """Shift to token alignment: NaN for the first token, which has no context."""
    aligned_T = np.full(length, np.nan, np.float32)
    aligned_T[1:] = values
    return aligned_T


def _rank_table(table_VV: FloatArray) -> FloatArray:
    """1 + the number of tokens with a strictly higher log-prob after the same token, shape (V, V)."""
    ascending_VV = np.sort(table_VV, axis=1)
    higher_VV = [
        row.size - np.searchsorted(sorted_row, row, side="right")
        for row, sorted_row in zip(table_VV, ascending_VV, strict=True)
    ]
    return np.asarray(higher_VV, np.float32) + np.float32(1)
