"""What every policy promises, over the members of the union, and the formulas of each."""

import math
import pickle
from typing import get_args

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from curator.data import Cut
from curator.errors import PolicyError
from curator.policies import PolicyConfig

POLICY = TypeAdapter(PolicyConfig)
MEMBERS = get_args(get_args(PolicyConfig)[0])
SMALLEST = {"threshold": {"minimum": 0.0}}


def smallest(member):
    kind = member.model_fields["kind"].default
    return POLICY.validate_python({"kind": kind, **SMALLEST.get(kind, {})})


def columns_for(policy, length=64, seed=0):
    generator = np.random.default_rng(seed)
    columns = {}
    for name in policy.columns():
        low, high = (-8, 0) if name.startswith("logprobs") else (0, 1)
        columns[name] = generator.uniform(low, high, length).astype(np.float32)
        columns[name][0] = np.nan
    return columns


@pytest.fixture(params=MEMBERS, ids=lambda member: member.__name__)
def policy(request):
    return smallest(request.param)


def test_every_kind_is_distinct_and_documented():
    kinds = [member.model_fields["kind"].default for member in MEMBERS]
    assert sorted(kinds) == ["excess_loss", "keep_all", "loss", "noise", "random", "threshold"]
    for member in MEMBERS:
        assert all(f.description for name, f in member.model_fields.items() if name != "kind"), member


def test_a_policy_survives_json_and_pickling(policy):
    assert POLICY.validate_json(POLICY.dump_json(policy)) == policy
    assert pickle.loads(pickle.dumps(policy)) == policy


def test_an_unknown_key_is_an_error(policy):
    with pytest.raises(ValidationError):
        POLICY.validate_python({**policy.model_dump(), "ratio": 0.5})


def test_nan_in_any_input_is_nan_in_the_score_and_weight_0(policy):
    for name in policy.columns():
        columns = columns_for(policy)
        columns[name][5] = np.nan
        score_T = policy.score(columns)
        assert score_T.shape == (64,) and score_T.dtype == np.float32
        assert np.flatnonzero(np.isnan(score_T)).tolist() == [0, 5]
        weights_T = policy.weigh(score_T, Cut(value=-60000.0, share=1), np.zeros(64, np.float32))
        assert weights_T[0] == weights_T[5] == 0 and weights_T.dtype == np.float32


def test_scores_are_pure_and_do_not_touch_their_input(policy):
    columns = columns_for(policy)
    copies = {name: values.copy() for name, values in columns.items()}
    first, second = policy.score(columns), policy.score(columns)
    assert np.array_equal(first, second, equal_nan=True)
    assert all(np.array_equal(columns[name], copies[name], equal_nan=True) for name in columns)


def test_weights_lie_between_0_and_1_and_are_0_or_1_when_binary(policy):
    score_T = policy.score(columns_for(policy))
    weights_T = policy.weigh(
        score_T, Cut(value=float(np.float16(np.nanmedian(score_T))), share=0.5), np.zeros_like(score_T)
    )
    assert policy.binary and set(weights_T.tolist()) <= {0.0, 1.0}


def test_a_missing_column_is_named(policy):
    with pytest.raises(PolicyError, match=policy.columns()[0]):
        policy.score({})


def test_infinite_log_probs_raise_no_warning(policy):
    columns = {name: np.array([np.nan, -np.inf, -np.inf], np.float32) for name in policy.columns()}
    assert policy.score(columns).shape == (3,)


@pytest.mark.parametrize("keep", [0, -0.1, 1.01, math.nan])
@pytest.mark.parametrize("kind", ["excess_loss", "loss", "noise", "random"])
def test_keep_must_be_a_share(kind, keep):
    with pytest.raises(ValidationError):
        POLICY.validate_python({"kind": kind, "keep": keep})


# ------------------------------------------------------------------------------------------------ formulas


def test_excess_loss_is_the_base_loss_less_the_reference_loss():
    policy = POLICY.validate_python({"kind": "excess_loss", "reference": "good", "base": "plain"})
    columns = columns_for(policy)
    losses = [(-float(b), -float(r)) for b, r in zip(columns["logprobs_plain"], columns["logprobs_good"], strict=True)]
    assert np.allclose(policy.score(columns)[1:], [base - good for base, good in losses[1:]], atol=1e-6)
    assert policy.columns() == ("logprobs_good", "logprobs_plain")


def test_loss_prefers_the_lowest_unless_told_otherwise():
    columns = {"logprobs_reference": np.array([np.nan, -3.0, -0.5], np.float32)}
    lowest, highest = (POLICY.validate_python({"kind": "loss", "prefer": p}) for p in ("lowest", "highest"))
    assert POLICY.validate_python({"kind": "loss"}) == lowest
    assert np.nanargmax(lowest.score(columns)) == 2 and np.nanargmax(highest.score(columns)) == 1


def noise_of(columns):
    """The formula of `noise`, token by token, in Python's own numbers."""
    logprobs, base, entropy, repeated = (columns[name].tolist() for name in POLICY.validate_python(NOISE).columns())
    surprise = [a + b for a, b in zip(logprobs, entropy, strict=True)]
    excess = [a - b for a, b in zip(logprobs, base, strict=True)]

    def mean(values, token, reach):
        first = last = token
        while first > 0 and token - first < reach and not math.isnan(values[first - 1]):
            first -= 1
        while last + 1 < len(values) and last - token < reach and not math.isnan(values[last + 1]):
            last += 1
        return sum(values[first : last + 1]) / (last - first + 1)

    def odds(token):
        around = mean(excess, token, 4)
        yield math.exp(-3.2 * mean(surprise, token, 12))
        yield math.exp(2 - 3.7 * around)
        yield math.exp(-0.8 * (excess[token] - around) - 0.2 * surprise[token])
        yield math.exp(-1 + 6.7 * repeated[token])

    return [math.nan if math.isnan(surprise[t]) else -math.log(sum(odds(t))) for t in range(len(surprise))]


NOISE = {"kind": "noise"}


def test_noise_adds_the_odds_of_its_views_within_the_document():
    policy = POLICY.validate_python(NOISE)
    columns = columns_for(policy)
    for values in columns.values():
        values[[20, 23]] = np.nan  # where further documents begin
    columns["repeated"] = np.where(np.isnan(columns["repeated"]), np.nan, columns["repeated"] > 0.7).astype(np.float32)
    assert np.allclose(policy.score(columns), noise_of(columns), atol=1e-5, equal_nan=True)


def test_noise_of_a_document_does_not_depend_on_those_before_it():
    policy = POLICY.validate_python(NOISE)
    own, others = columns_for(policy, 50), columns_for(policy, 5000, seed=1)
    stored = [{name: values.astype(np.float16) for name, values in columns.items()} for columns in (own, others)]
    own, others = ({name: values.astype(np.float32) for name, values in columns.items()} for columns in stored)
    together = policy.score({name: np.concatenate([others[name], own[name]]) for name in own})
    assert np.array_equal(together[5000:], policy.score(own), equal_nan=True)


@pytest.mark.parametrize(
    ("bounds", "kept"),
    [
        ({"minimum": 1.0}, [0, 0, 1, 1, 1]),
        ({"maximum": 2.0}, [0, 1, 1, 1, 0]),
        ({"minimum": 1, "maximum": 2}, [0, 0, 1, 1, 0]),
    ],
)
def test_threshold_bounds_are_inclusive(bounds, kept):
    policy = POLICY.validate_python({"kind": "threshold", "measure": "loss", **bounds})
    score_T = policy.score({"logprobs_reference": np.array([np.nan, -0.5, -1.0, -2.0, -2.5], np.float32)})
    assert policy.weigh(score_T, Cut(value=0, share=0), np.zeros(5, np.float32)).tolist() == kept


def test_a_threshold_between_two_float16_values_keeps_the_scores_that_round_to_it():
    policy = POLICY.validate_python({"kind": "threshold", "minimum": 0.1})
    stored = np.array([0.1], np.float16).astype(np.float32)
    assert stored[0] < 0.1
    assert policy.weigh(stored, Cut(value=0, share=0), np.zeros(1, np.float32)).tolist() == [1.0]


@pytest.mark.parametrize("bounds", [{}, {"minimum": 2, "maximum": 1}, {"minimum": math.inf}])
def test_threshold_bounds_that_make_no_sense_are_refused(bounds):
    with pytest.raises(ValidationError):
        POLICY.validate_python({"kind": "threshold", **bounds})


def test_hard_weights_keep_what_is_above_the_cut_and_a_share_of_the_ties():
    policy = POLICY.validate_python({"kind": "loss"})
    score_T = np.array([1.0, 1.0, 1.0, 2.0, 0.0, np.nan, np.inf, -np.inf], np.float32)
    tie_T = np.array([0.0, 0.25, 0.3, 0.9, 0.0, 0.0, 0.9, 0.0], np.float32)
    assert policy.weigh(score_T, Cut(value=1, share=0.3), tie_T).tolist() == [1, 1, 0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize(
    ("form", "oracle"),
    [
        ("sigmoid", lambda s, cut, width: 1 / (1 + math.exp(-(s - cut) / width))),
        ("linear", lambda s, cut, width: min(max((s - cut) / (2 * width) + 0.5, 0.0), 1.0)),
    ],
)
@pytest.mark.parametrize("temperature", [0.05, 1.0, 7.0])
def test_soft_weights_follow_their_formula(form, oracle, temperature):
    policy = POLICY.validate_python({"kind": "loss", "soft": {"form": form, "temperature": temperature}})
    score_T = np.linspace(-4, 4, 101, dtype=np.float32)
    weights_T = policy.weigh(score_T, Cut(value=0.5, share=0.2), np.full(101, np.nan, np.float32))
    assert not policy.binary and weights_T.dtype == np.float32
    assert np.allclose(weights_T, [oracle(float(s), 0.5, temperature) for s in score_T], atol=1e-5)
    assert np.all(np.diff(weights_T) >= 0)


@pytest.mark.parametrize("form", ["sigmoid", "linear"])
def test_soft_weights_of_infinities_are_their_limits(form):
    policy = POLICY.validate_python({"kind": "loss", "soft": {"form": form, "temperature": 0.5}})
    score_T = np.array([-np.inf, np.inf, np.nan, -60000, 60000], np.float32)
    assert policy.weigh(score_T, Cut(value=0, share=1), np.zeros(5, np.float32)).tolist() == [0, 1, 0, 0, 1]
    at_infinity = policy.weigh(np.array([np.inf], np.float32), Cut(value=math.inf, share=1), np.zeros(1, np.float32))
    assert at_infinity.tolist() == [0.5]


@pytest.mark.parametrize(
    "soft", [{"form": "cubic", "temperature": 1}, {"form": "linear", "temperature": 0}, {"form": "linear"}]
)
def test_soft_settings_that_make_no_sense_are_refused(soft):
    with pytest.raises(ValidationError):
        POLICY.validate_python({"kind": "loss", "soft": soft})


def test_scores_and_ties_of_other_lengths_are_refused():
    policy = POLICY.validate_python({"kind": "loss"})
    with pytest.raises(PolicyError, match="shape"):
        policy.weigh(np.zeros(3, np.float32), Cut(value=0, share=1), np.zeros(2, np.float32))
