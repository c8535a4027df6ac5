"""A model with a tokenizer of its own, through the whole job: its tokens are scored, the dataset's get the scores."""

import json
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from curator import Manifest, curate, parse_spec, select, verify
from curator.data import TokenScores
from curator.errors import ClusterError, ScorerError, ShardError, SpecError
from curator.frozen import find_plan
from curator.job import Job
from curator.preview import make_preview
from curator.stages.projected import OwnTokens, encode_own
from curator.stages.score import ScoreStage, check_scores
from curator.tokens.tokenizer import EncodedDocument, TokensConfig, load_tokenizer

MakeSpec = Callable[..., dict[str, Any]]
RAY = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster"), pytest.mark.filterwarnings("ignore::ResourceWarning")]


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory, mix_rows: list[dict[str, str]]) -> Callable[..., Path]:
    """Train a bigram model over a byte-level tokenizer of its own on a little of the mix."""

    def make(bos: bool = False, nfc: bool = False) -> Path:
        folder = tmp_path_factory.mktemp("bigram")
        tokenizer = tokenizers.Tokenizer(models.BPE())
        if nfc:
            tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=450, special_tokens=["<s>"], initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )  # fmt: skip
        texts = [row["text"] for row in mix_rows[500:560]]
        tokenizer.train_from_iterator(texts, trainer)
        if bos:
            tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        tokenizer.save(str(folder / "tokenizer.json"))
        size = tokenizer.get_vocab_size()
        pairs_VV = np.zeros((size, size), np.int64)
        for encoding in tokenizer.encode_batch(texts):
            np.add.at(pairs_VV, (encoding.ids[:-1], encoding.ids[1:]), 1)
        rows, following = np.nonzero(pairs_VV)
        np.savez(
            folder / "counts.npz", unigram=pairs_VV.sum(0), row_sizes=np.bincount(rows, minlength=size),
            following=following, count=pairs_VV[rows, following],
        )  # fmt: skip
        return folder

    return make


def run(spec: dict[str, Any]) -> tuple[Manifest, Path]:
    parsed = parse_spec(spec)
    return curate(parsed), Path(parsed.output_root)


def read_curated(directory: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(directory.glob("curated/*.parquet")) for row in pq.read_table(path).to_pylist()]


def with_base(folder: Path, **settings: Any) -> dict[str, Any]:
    return {"reference": {"engine": "bigram"}, "base": {"engine": "bigram", "model": str(folder), **settings}}


def loop_over_bytes(
    model: Path, ids: list[int], source_bytes: list[int], target_bytes: list[int]
) -> Iterator[tuple[int, float]]:
    """(first byte's token of the dataset, share) by plain loops: every span's sum, given to each of its bytes."""
    with np.load(model / "counts.npz") as counts:
        unigram = (counts["unigram"] + 0.5) / (counts["unigram"] + 0.5).sum()
        starts = np.concatenate([[0], np.cumsum(counts["row_sizes"])])
        following, count = counts["following"], counts["count"]
    logprobs = [math.nan]
    for previous, current in pairwise(ids):
        row = slice(starts[previous], starts[previous + 1])
        seen = dict(zip(following[row].tolist(), count[row].tolist(), strict=True))
        distinct, total = max(len(seen), 1), sum(seen.values())
        logprobs.append(math.log((seen.get(current, 0) + distinct * unigram[current]) / (total + distinct)))
    own, ours, pending = 0, 0, 0.0
    ends_S, ends_T = np.cumsum(source_bytes).tolist(), np.cumsum(target_bytes).tolist()
    first, start = 0, 0
    for own, end in enumerate(ends_S):
        pending += logprobs[own] if source_bytes[own] else 0.0
        if end in ends_T and source_bytes[own]:
            ours = ends_T.index(end)
            for token in range(first, ours + 1):
                yield token, pending * target_bytes[token] / (end - start)
            first, start, pending = ours + 1, end, 0.0


@pytest.mark.parametrize("bos", [False, True], ids=["plain", "bos"])
class TestAWholeJob:
    pytestmark = RAY

    def test_its_scores_are_projected_onto_the_datasets_tokens(
        self, make_spec: MakeSpec, make_model: Callable[..., Path], bos: bool
    ) -> None:
        model = make_model(bos=bos)
        manifest, directory = run(make_spec(rows=60, shard_tokens=30_000, models=with_base(model)))
        tokenizer = load_tokenizer(str(model), None, TokensConfig())
        assert (
            manifest.models["base"].tokenizer_fingerprint == tokenizer.fingerprint != manifest.tokenizer["fingerprint"]
        )
        assert manifest.models["reference"].tokenizer_fingerprint is None
        assert "`base` has a tokenizer of its own" in (directory / "README.md").read_text()
        assert len(manifest.shards) > 1
        for row in read_curated(directory):
            (own,) = tokenizer.encode([row["text"]])
            assert isinstance(own, EncodedDocument) and own.input_ids.tolist() != row["input_ids"]
            expected = dict(
                loop_over_bytes(model, own.input_ids.tolist(), own.token_bytes.tolist(), row["token_bytes"])
            )
            expected[0] = math.nan
            np.testing.assert_allclose(
                np.array(row["logprobs_base"], np.float64),
                [expected[t] for t in range(len(expected))],
                rtol=1e-3,
                atol=1e-6,
            )
            assert not any(w for w, x in zip(row["token_weights"], row["logprobs_base"], strict=True) if math.isnan(x))
        assert verify(str(directory)) == []

    def test_verify_still_finds_a_score_that_is_missing_in_the_midst(
        self, make_spec: MakeSpec, make_model: Callable[..., Path], bos: bool
    ) -> None:
        import pyarrow as pa

        _, directory = run(make_spec(rows=20, models=with_base(make_model(bos=bos))))
        path = directory / "curated" / "00000.parquet"
        table = pq.read_table(path)
        lists = table.column("logprobs_base").to_pylist()
        lists[3][len(lists[3]) // 2] = math.nan
        place = table.schema.get_field_index("logprobs_base")
        pq.write_table(
            table.set_column(place, table.schema.field(place), pa.array(lists, table.schema.field(place).type)), path
        )
        assert "curated/00000.parquet: row 3: logprobs_base is not finite" in verify(str(directory))


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_long_documents_are_windowed_in_the_models_own_tokens(
    make_spec: MakeSpec, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    """A bigram's scores do not depend on its window, but the ids at a window's start would be wrong without its BOS."""
    model = make_model(bos=True)
    whole, _ = run(make_spec(rows=20, models=with_base(model), output={"uri": str(tmp_path / "whole")}))
    narrow = with_base(model, context=40, left_context=3)
    cut, _ = run(make_spec(rows=20, models=narrow, output={"uri": str(tmp_path / "cut")}))
    assert [shard.sha256 for shard in cut.shards] == [shard.sha256 for shard in whole.shards]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_eos_is_carried_over_and_select_reads_projected_scores(
    make_spec: MakeSpec, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = make_model()
    (model / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<s>"}))
    spec = make_spec(rows=20, models=with_base(model), tokens={"eos": True})
    spec["models"]["reference"]["model"] = str(make_model())
    (Path(spec["models"]["reference"]["model"]) / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<s>"}))
    spec["models"]["base"]["model"] = str(model)
    _, directory = run(spec)
    selected = select(str(directory), {"kind": "loss", "keep": 0.5, "model": "base"}, str(tmp_path / "selected"))
    assert selected.totals.kept_tokens > 0 and verify(str(tmp_path / "selected")) == []
    for row in read_curated(directory):
        assert row["token_bytes"][-1] == 0 and np.isfinite(row["logprobs_base"][-1])


# ------------------------------------------------------------------------------------------------ planning


def test_features_of_a_model_with_its_own_tokenizer_are_refused(
    make_spec: MakeSpec, make_model: Callable[..., Path]
) -> None:
    spec = make_spec(rows=5, models=with_base(make_model(), features=["entropy"]))
    with pytest.raises(SpecError, match=r"models\.base\.features: \['entropy'\].*only log-probs can be projected"):
        find_plan(parse_spec(spec))


def test_the_scores_key_follows_the_own_tokenizer_and_its_special_tokens(
    make_spec: MakeSpec, make_model: Callable[..., Path]
) -> None:
    """`bos: false` changes nothing for the reference, which has none, but what the model with a BOS sees."""
    spec = make_spec(rows=5, models=with_base(make_model(bos=True)))
    plan = find_plan(parse_spec(spec))
    without = find_plan(parse_spec(spec | {"tokens": {"bos": False}}))
    assert plan.tokens_key == without.tokens_key
    assert plan.scores_key("reference") == without.scores_key("reference")
    assert plan.scores_key("base") != without.scores_key("base")


def test_a_preview_projects_too(make_spec: MakeSpec, make_model: Callable[..., Path]) -> None:
    html, summary = make_preview(parse_spec(make_spec(rows=5, models=with_base(make_model()))), 5)
    assert "5 documents" in summary and html.startswith("<!doctype html>")


# ------------------------------------------------------------------------------------------------ faults


def test_a_tokenizer_that_changed_since_the_plan_is_refused(
    make_spec: MakeSpec, make_model: Callable[..., Path]
) -> None:
    model = make_model()
    spec = parse_spec(make_spec(rows=5, models=with_base(model)))
    stage = make_stage(Job(spec, find_plan(spec)), "base")
    (model / "tokenizer.json").write_bytes((make_model(bos=True) / "tokenizer.json").read_bytes())
    with pytest.raises(ClusterError, match=r"models\.base: tokenizer .* has fingerprint .*put the same files"):
        stage.open()


def make_stage(job: Job, name: str) -> ScoreStage:
    return ScoreStage(
        job.tokens, job.scores(name), name, job.spec.models[name], job.plan.models[name], False,
        job.spec.tokens, job.plan.canary, 1,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_document_that_the_model_cannot_represent_is_named(
    make_spec: MakeSpec, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    spec = make_spec(rows=3, models=with_base(make_model(nfc=True)), run={"retries": 0})
    rows = [{"id": "fine", "text": "plain"}, {"id": "odd", "text": "e\u0301 is two code points"}]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        ShardError, match=r"model 'base': its tokenizer cannot represent row 1 of shard 00000, document 'odd'"
    ):
        run(spec)


def test_rows_are_counted_over_row_groups(make_model: Callable[..., Path]) -> None:
    tokenizer = load_tokenizer(str(make_model(nfc=True)), None, TokensConfig())
    with pytest.raises(ScorerError, match=r"row 41 of shard 00007, document 'b'"):
        encode_own(tokenizer, ["a", "e\u0301"], ["a", "b"], "base", "shard 00007", 40)


def test_only_the_first_span_may_be_unscored() -> None:
    scores = [TokenScores(np.array([np.nan, np.nan, -1, -2], np.float32))]
    check_scores(scores, "base", 0, [2])
    with pytest.raises(ScorerError, match=r"log-prob nan for token 1 of row 0"):
        check_scores(scores, "base", 0)
    with pytest.raises(ScorerError, match=r"log-prob nan for token 1 of row 0"):
        check_scores(scores, "base", 0, [1])
    with pytest.raises(ScorerError, match=r"log-prob -inf for token 0 of row 0"):
        check_scores([TokenScores(np.array([-np.inf], np.float32))], "base", 0, [1])
    assert OwnTokens(False).ids == []
