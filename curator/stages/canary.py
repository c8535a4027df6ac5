"""A canary: a fixed text that every engine scores when it starts and after every shard, to see whether it drifts.

An engine can go wrong without failing: a damaged GPU memory cell, a kernel gone stale, a server restarted with other
weights. Its scores would still look like scores. So the scores of one text are kept beside the model's shards, in
`canary.json`, written once by whichever engine starts first, and every engine must reproduce them before a shard is
published. An engine that does not is an `EngineDrifted`: its process is ended and the shard is scored by a fresh one.

The text is in `curator.tokens.canary_text`, in the model's own tokens.

Invariant: the canary is a call of its own, never part of a shard's batches, so no byte of a shard depends on it.
What it cannot see: an engine that was wrong when it wrote `canary.json`. Then every sound engine fails against it; the
message says what to remove.
"""

import numpy as np
from pydantic import Field

from curator import storage
from curator.data import FloatArray, IntArray, ModelIdentity, Scorer
from curator.errors import EngineDrifted, ScorerError
from curator.manifest import ShardFolder, read_record
from curator.stored import StoredRecord
from curator.worker import worker_name

CANARY = "canary.json"

FLOAT32_TOLERANCE_NATS = 1e-3
"""Float32 engines differ by 1e-5 to 1e-4 between batches and kernels; what is wrong differs by tenths."""

HALF_TOLERANCE_NATS = 0.05
"""Batching alone moves bfloat16 scores by up to about 0.02 nats on average, kernels and machines by little more."""


class StoredCanary(StoredRecord):
    """What an engine said of the canary: the ids in this model's tokens, and the log-probs of all but the first."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...] = Field(description="nats")
    dtype: str


class Canary:
    """The canary of one model, with the scores that its engines must reproduce."""

    def __init__(self, ids_T: IntArray, folder: ShardFolder, name: str, identity: ModelIdentity) -> None:
        """Prepare to compare; nothing is scored or read yet.

        Args:
            ids_T: the canary in the model's tokens, from `encode_canary`; cut to the model's context.
            folder: the model's score shards; `canary.json` lies in it.
            name: the model's name in the spec, for messages.
            identity: the model; its dtype sets the tolerance.
        """
        self._ids_T, self._folder, self._name, self._dtype = ids_T[: identity.context], folder, name, identity.dtype
        self._expected_T: FloatArray | None = None

    def check(self, engine: Scorer) -> None:
        """Score the canary and compare; the very first engine of a model stores its scores instead.

        Fewer than two tokens have no score: then there is nothing to check.

        Raises:
            EngineDrifted: a score is not finite, or they differ by more than the dtype explains.
            ScorerError: `canary.json` is of other tokens.
        """
        if len(self._ids_T) < 2:
            return
        (scores,) = engine.score([self._ids_T], lambda _: None)
        found_T = np.asarray(scores.logprobs_T[1:], np.float32)
        if not np.isfinite(found_T).all():
            t = 1 + int(np.flatnonzero(~np.isfinite(found_T))[0])
            raise EngineDrifted(
                f"model {self._name!r} on {worker_name()} gave log-prob {scores.logprobs_T[t]} for token {t} of the "
                "canary text; try dtype float32, or check the model's weights and this machine"
            )
        if self._expected_T is None:
            self._expected_T = self._read_or_store(found_T)
        self._compare(found_T, self._expected_T)

    def _read_or_store(self, found_T: FloatArray) -> FloatArray:
        root, file = self._folder.root, f"{self._folder.name}/{CANARY}"
        if not storage.exists(storage.join(root, file)):
            record = StoredCanary(ids=self._ids_T.tolist(), logprobs=found_T.tolist(), dtype=self._dtype)
            storage.write_once(root, file, record.model_dump_json().encode())
        stored = read_record(storage.join(root, file), StoredCanary)
        if list(stored.ids) != self._ids_T.tolist() or len(stored.logprobs) != len(found_T):
            error = ScorerError(
                f"{storage.join(root, file)!r} holds the canary of other tokens than model {self._name!r} has now; "
                "restore the model's tokenizer, or remove this file to store new scores"
            )
            error.retryable = False
            raise error
        return np.array(stored.logprobs, np.float32)

    def _compare(self, found_T: FloatArray, expected_T: FloatArray) -> None:
        distance_T = np.abs(found_T.astype(np.float64) - expected_T)
        allowed = tolerance_nats(self._dtype)
        if distance_T.mean() <= allowed:
            return
        raise EngineDrifted(
            f"model {self._name!r} on {worker_name()} drifted: its scores of the canary text are off by "
            f"{distance_T.mean():.4g} nats on average, {distance_T.max():.4g} at most, where {self._dtype} allows "
            f"{allowed:g}; its shard is not published. If fresh engines fail too, check the machine; if the stored "
            f"scores are wrong, remove the folder {storage.join(self._folder.root, self._folder.name)!r}"
        )


def tolerance_nats(dtype: str) -> float:
    """Mean absolute difference in nats that engines of this dtype may show; unknown dtypes count as half precision."""
    return FLOAT32_TOLERANCE_NATS if dtype in ("float32", "float64") else HALF_TOLERANCE_NATS
