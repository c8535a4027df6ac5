"""Noise: drop what does not belong where it stands, in runs or as single tokens, and what the document repeats.

Excess loss tells of a single token; noise mostly comes in runs, of which single tokens look innocent. So the scores of
neighbours are averaged, within the document. Four views each give odds that a token is noise, which add up:

- surprise: log-prob plus entropy under the reference, 0 on average where it finds the text as likely as it expects,
  below that in shuffled words and garbage whatever their subject (typicality; Meister et al. 2023, arXiv:2202.00666);
- excess: the base's loss less the reference's, below 0 where the base knows text that is not of the target's kind;
- the token alone: its excess against that of its neighbours, and its surprise, for a wrong number in a right sentence;
- repetition: the token lies in a run that the document had before.
"""

from collections.abc import Mapping
from functools import reduce
from typing import Literal

import numpy as np
from pydantic import Field

from curator.data import FloatArray, ModelName
from curator.policies.weights import KeepShare, pick, subtract

REPEATED = "repeated"
"""Column that selection supplies itself: from 0 (new) to 1 (in a long run that the document had before)."""

_SURPRISE_REACH, _EXCESS_REACH = 12, 4
_MOST_NATS = 64.0
_SURPRISE, _EXCESS, _ALONE, _SURPRISE_ALONE, _REPEATED = map(np.float32, (3.2, 3.7, 0.8, 0.2, 6.7))
_EXCESS_ODDS, _REPEATED_ODDS = map(np.float32, (2.0, -1.0))
"""Log odds by nat of each view, and those of the views at 0: fitted to the ranks of five kinds of noise in one set
of documents, under models of 4.6 million parameters, and rounded; benchmarks/efficacy/noise.py measures others."""


class Noise(KeepShare):
    """Drop the tokens that fit their surroundings least, and repetitions.

    Needs the entropy of the reference: `models.reference.features: [entropy]`.
    """

    kind: Literal["noise"] = "noise"
    keep: float = Field(default=0.8, gt=0, le=1, description="share of the scored tokens to keep")
    reference: ModelName = Field(default="reference", description="the model trained on good data")
    base: ModelName = Field(default="base", description="a model that was not")

    def columns(self) -> tuple[str, ...]:
        """Both models' log-probs, the reference's entropy, and what repeats itself."""
        return f"logprobs_{self.reference}", f"logprobs_{self.base}", f"entropy_{self.reference}", REPEATED

    def score(self, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Log odds that the token is clean, shape (T,), up to a constant: less the log of the views' odds, summed."""
        reference_T, base_T, entropy_T, repeated_T = (pick(columns, name, self.kind) for name in self.columns())
        surprise_T = subtract(reference_T, np.negative(entropy_T))
        excess_T = subtract(reference_T, base_T)
        around_T = mean_around(excess_T, _EXCESS_REACH)
        views = (
            -_SURPRISE * mean_around(surprise_T, _SURPRISE_REACH),
            _EXCESS_ODDS - _EXCESS * around_T,
            -_ALONE * subtract(excess_T, around_T) - _SURPRISE_ALONE * surprise_T,
            _REPEATED_ODDS + _REPEATED * repeated_T,
        )
        with np.errstate(invalid="ignore"):
            noise_T: FloatArray = reduce(np.logaddexp, views)
        return np.negative(noise_T)


def mean_around(values_T: FloatArray, reach: int) -> FloatArray:
    """Mean of each value and of up to `reach` on both sides of it, never across a NaN, shape (T,).

    Documents lie end to end and begin with a NaN, so none sees another. Values count as at most 64 nats, and to the
    2^-20th of a nat: sums of them are exact, and what lies before a document changes nothing.
    """
    nan_T = np.isnan(values_T)
    known_T = np.where(nan_T, np.float32(0), np.clip(values_T, -_MOST_NATS, _MOST_NATS)).astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(np.rint(known_T * 2**20))])
    places = np.arange(len(values_T))
    start = np.maximum(places - reach, np.maximum.accumulate(np.where(nan_T, places, -1)) + 1)
    end = np.where(nan_T, places, len(values_T))
    stop = np.minimum(places + reach + 1, np.minimum.accumulate(end[::-1])[::-1])
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_T = (sums[stop] - sums[start]) / (stop - start) / 2**20
    return np.where(nan_T, np.nan, mean_T).astype(np.float32)
