"""Noise: drop what does not belong where it stands, in runs or as single tokens, and what the document repeats.

Excess loss tells of a single token; noise mostly comes in runs, of which single tokens look innocent. So the scores of
neighbours are averaged, within the document. Three views, of which the worst counts, and a fourth:

- surprise: log-prob plus entropy under the reference, 0 on average where it finds the text as likely as it expects,
  below that in shuffled words and garbage whatever their subject (typicality; Meister et al. 2023, arXiv:2202.00666);
- excess: the base's loss less the reference's, below 0 where the base knows text that is not of the target's kind;
- surprise of the token alone, for a wrong number in a right sentence;
- repetition: the token lies in a run that the document had before.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import Field

from curator.data import FloatArray, ModelName
from curator.policies.weights import KeepShare, pick, subtract

REPEATED = "repeated"
"""Column that selection supplies itself: from 0 (new) to 1 (in a long run that the document had before)."""

_SURPRISE_REACH, _EXCESS_REACH = 12, 4
_ALONE = 6.0
_REPEATED_NATS = 5.0
_MOST_NATS = 64.0


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
        """The least of the module's views in nats, shape (T,), less 5 nats for a repetition; higher fits better."""
        reference_T, base_T, entropy_T, repeated_T = (pick(columns, name, self.kind) for name in self.columns())
        surprise_T = subtract(reference_T, np.negative(entropy_T))
        excess_T = subtract(reference_T, base_T)
        score_T = np.minimum(mean_around(surprise_T, _SURPRISE_REACH), mean_around(excess_T, _EXCESS_REACH))
        score_T = np.minimum(score_T, surprise_T / np.float32(_ALONE))
        return subtract(score_T, np.float32(_REPEATED_NATS) * repeated_T)


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
