"""Whether a tenant may have a spec run: what passes, what is refused, and in which order."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator.job_directory import new_id
from curator.spec import CurationSpec
from curator.training.reference.spec import TrainSpec
from service.admission import AdmittedSpec, admit
from service.problems import Problem
from service.settings import Settings
from service.uploads import find_upload, receive

OWN_JOB, OTHER_JOB = new_id("job"), new_id("job")
Admit = Callable[..., AdmittedSpec]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.jsonl", "sub/b.jsonl"):
        (folder / name).write_text('{"text": "some text"}\n')
    return folder


@pytest.fixture
def settings(tmp_path: Path, root: Path) -> Settings:
    return Settings(
        data_dir=tmp_path / "data",
        allow_root=(str(root), "s3://bucket/data"),
        allow_models=("org/open", "org/pinned@v1", "org/two@v1", "org/two@v2", "gpt2"),
        allow_datasets=("org/texts", "org/fixed@abc123"),
        allow_hosts=("http://models.internal:8000", "https://api.example.com"),
        allow_key_variables=("MODEL_KEY",),
    )


def submit(settings: Settings, content: dict[str, Any], kind: str = "curate", tenant: str = "alice") -> AdmittedSpec:
    return admit(
        content,
        settings=settings,
        tenant=tenant,
        job_output=str(settings.jobs_dir / OWN_JOB / "output"),
        owns_job=lambda job_id: job_id == OWN_JOB,
        find_upload=lambda owner, upload_id: find_upload(settings, owner, upload_id),
        kind=kind,  # type: ignore[arg-type]
    )


def make_spec(root: Path, **changes: Any) -> dict[str, Any]:
    spec = {
        "name": "test",
        "corpus": {"kind": "jsonl", "uri": str(root / "*.jsonl")},
        "models": {"reference": {"engine": "bigram"}},
        "policy": {"kind": "loss"},
    }
    return copy.deepcopy(spec | changes)


def refusal(settings: Settings, content: dict[str, Any], kind: str = "curate", tenant: str = "alice") -> Problem:
    with pytest.raises(Problem) as raised:
        submit(settings, content, kind, tenant)
    return raised.value


def forbidden(settings: Settings, content: dict[str, Any], kind: str = "curate") -> list[str]:
    """Paths of the faults of a 403."""
    problem = refusal(settings, content, kind)
    assert (problem.status, problem.code) == (403, "not_allowed"), problem.detail
    return [fault["path"] for fault in problem.errors or []]


def upload(settings: Settings, tenant: str, name: str = "corpus.jsonl") -> str:
    with receive(settings, tenant, name, None) as receiver:
        receiver.take(b'{"text": "some text"}\n')
        return f"upload://{receiver.keep().id}/{name}"


# ------------------------------------------------------------------------------------------------ what comes out


def test_a_spec_is_completed_and_what_was_sent_is_not_changed(settings: Settings, root: Path) -> None:
    sent = make_spec(root)
    before = copy.deepcopy(sent)
    admitted = submit(settings, sent)
    output = str(settings.jobs_dir / OWN_JOB / "output")
    assert sent == before
    assert admitted.content["output"] == {"kind": "parquet", "uri": output}
    assert admitted.content["run"] == {"address": None}
    assert (admitted.name, admitted.output, admitted.uploads) == ("test", output, ())
    assert admitted.spec == CurationSpec.model_validate(admitted.content)
    assert [Path(source.uri).name for source in admitted.spec.corpus.list_sources()] == ["a.jsonl"]


def test_admitting_the_outcome_again_changes_nothing(settings: Settings, root: Path) -> None:
    settings = settings.model_copy(update={"ray_address": "ray://head:10001"})
    model = {"engine": "transformers", "model": "org/pinned"}
    sent = make_spec(root, corpus={"kind": "jsonl", "uri": upload(settings, "alice")}, models={"reference": model})
    once = submit(settings, sent)
    assert submit(settings, once.content).content == once.content


def test_the_shipped_models_work_without_any_root(settings: Settings, root: Path) -> None:
    bare = Settings(data_dir=settings.data_dir)
    for model in ({}, {"model": "bigram"}, {"model": "unigram"}):
        content = make_spec(root, corpus={"kind": "jsonl", "uri": upload(bare, "alice")})
        content["models"]["reference"] |= model
        spec = submit(bare, content).spec
        assert isinstance(spec, CurationSpec)
        assert spec.models["reference"].identify().engine == "bigram"
        assert len(spec.corpus.list_sources()) == 1


@pytest.mark.parametrize(("asked", "given_"), [(1, 1), (3, 3), (64, 3), ("auto", "auto")])
def test_workers_are_lowered_to_what_a_job_may_have(settings: Settings, root: Path, asked: Any, given_: Any) -> None:
    capped = settings.model_copy(update={"max_workers_per_job": 3})
    run = submit(capped, make_spec(root, run={"workers": asked})).content["run"]
    assert (run["workers"], run["max_workers"]) == (given_, 3)  # the latter is for auto, at whatever comes out
    assert submit(capped, make_spec(root, run={"max_workers": 2})).content["run"]["max_workers"] == 2
    assert submit(settings, make_spec(root, run={"workers": asked})).content["run"]["workers"] == asked


@pytest.mark.parametrize(("launcher", "address"), [("subprocess", "ray://head:10001"), ("ray", None)])
def test_the_service_chooses_the_cluster(settings: Settings, root: Path, launcher: str, address: str | None) -> None:
    settings = settings.model_copy(update={"ray_address": "ray://head:10001", "launcher": launcher})
    assert submit(settings, make_spec(root)).content["run"]["address"] == address
    assert submit(settings, make_spec(root, run={"address": None})).content["run"]["address"] == address
    assert forbidden(settings, make_spec(root, run={"address": "ray://elsewhere:10001"})) == ["run.address"]


def test_a_training_spec_is_completed(settings: Settings, root: Path) -> None:
    sent = {"base": "org/pinned", "corpus": {"kind": "text", "uri": f"{root}/**/*.txt"}}
    admitted = submit(settings, sent, "train_reference")
    assert admitted.content["revision"] == "v1"
    assert admitted.output == str(settings.jobs_dir / OWN_JOB / "output")
    assert isinstance(admitted.spec, TrainSpec)
    assert admitted.name == "reference from pinned"


def test_a_training_spec_gets_the_services_cluster_and_no_more_workers_than_a_job_may_have(
    settings: Settings, root: Path
) -> None:
    settings = settings.model_copy(update={"ray_address": "ray://head:10001", "max_workers_per_job": 3})
    sent = {"base": "org/pinned", "corpus": {"kind": "text", "uri": f"{root}/**/*.txt"}}
    for run, workers in (({}, 1), ({"workers": 2}, 2), ({"workers": 64}, 3)):
        settled = submit(settings, sent | {"run": run}, "train_reference").spec.run
        assert (settled.workers, settled.address) == (workers, "ray://head:10001")
    assert forbidden(settings, sent | {"run": {"address": "ray://elsewhere:1"}}, "train_reference") == ["run.address"]


def test_a_reference_is_trained_only_on_a_dataset_in_an_allowed_place(
    settings: Settings, root: Path, tmp_path: Path
) -> None:
    sent = {"base": "org/pinned", "dataset": str(root / "sub")}
    assert submit(settings, sent, "train_reference").content["dataset"] == str(root / "sub")
    assert forbidden(settings, sent | {"dataset": str(tmp_path)}, "train_reference") == ["dataset"]
    assert forbidden(settings, sent | {"dataset": str(root / "sub" / "*")}, "train_reference") == ["dataset"]
    (root / "sub" / "curated").symlink_to(tmp_path)
    assert forbidden(settings, sent, "train_reference") == ["dataset"]


# ------------------------------------------------------------------------------------------------ what is said


def test_places_are_judged_before_other_faults(settings: Settings, root: Path) -> None:
    outside = {"kind": "jsonl", "uri": "/etc/passwd"}
    assert forbidden(settings, make_spec(root, corpus=outside, policy={"kind": "excess_loss"})) == ["corpus.uri"]
    assert forbidden(settings, make_spec(root, corpus=outside, nonsense=1)) == ["corpus.uri"]
    assert forbidden(settings, {"corpus": outside}) == ["corpus.uri"]


def test_every_refusal_is_told_at_once(settings: Settings, root: Path) -> None:
    content = make_spec(
        root,
        corpus={"kind": "hub", "path": "json", "data_files": [f"{root}/a.jsonl", "/etc/passwd"]},
        models={
            "reference": {"engine": "vllm", "model": "evil/model", "engine_args": {"worker_cls": "os.system"}},
            "base": {"engine": "openai", "model": "m", "url": "http://10.0.0.1", "api_key_env": "HOME"},
        },
        tokens={"tokenizer": "../x"},
        output={"uri": "s3://other/x"},
        work="/tmp/work",
        run={"address": "auto"},
    )
    assert forbidden(settings, content) == [
        "corpus.data_files.1", "models.reference.model", "models.reference.engine_args.worker_cls", "models.base.model",
        "models.base.url", "models.base.api_key_env", "tokens.tokenizer", "output.uri", "work", "run.address",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"policy": {"kind": "excess_loss"}}, "policy"),
        ({"corpus": "x"}, "corpus"),
        ({"corpus": {"kind": "csv", "uri": "/etc/passwd"}}, "corpus.kind"),
        ({"corpus": {"uri": "/etc/passwd"}}, "corpus"),
        ({"models": {"reference": {"engine": "bigram", "url": 5}}}, "models.reference.url"),
        ({"models": []}, "models"),
        ({"output": []}, "output"),
        ({"run": None}, "run"),
        ({"run": {"workers": 0}}, "run"),
        ({"nonsense": 1}, "nonsense"),
        ({"name": ""}, "name"),
    ],
)
def test_other_faults_are_told_by_their_path(
    settings: Settings, root: Path, changes: dict[str, Any], path: str
) -> None:
    problem = refusal(settings, make_spec(root, **changes))
    assert (problem.status, problem.code) == (422, "invalid_spec")
    assert [fault["path"] for fault in problem.errors or []] == [path]
    assert all(fault["message"] for fault in problem.errors or [])


SECRET = "sk-proj-abcdefghijklmnop1234"


@pytest.mark.parametrize(
    "changes",
    [
        {"models": {"m": {"engine": "openai", "model": "m", "url": f"http://user:{SECRET}@models.internal:8000"}}},
        {"models": {"m": {"engine": "openai", "model": "m", "url": f"http://models.internal:8000?key={SECRET}"}}},
        {
            "models": {
                "m": {"engine": "openai", "model": "m", "url": "http://models.internal:8000", "api_key_env": SECRET}
            }
        },
        {"models": {"m": {"engine": "openai", "model": "m", "url": {"x": SECRET}}}},
        {"models": {"m": {"engine": "bigram", "api_key_env": SECRET}}},
        {"models": {"m": {"engine": "bigram", "token": SECRET}}},
        {"output": {"uri": f"s3://key:{SECRET}@bucket/data"}},
        {"output": {"uri": f"s3://key:pass{SECRET[3:]}@bucket/data"}},
        {"work": f"https://user:{SECRET}@host/x"},
        {"policy": SECRET},
    ],
)
def test_secrets_are_never_repeated(settings: Settings, root: Path, changes: dict[str, Any]) -> None:
    problem = refusal(settings, make_spec(root, **changes))
    said = problem.detail + json.dumps(problem.errors)
    assert "abcdefghijklmnop" not in said


# ------------------------------------------------------------------------------------------------ whatever is sent

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_PATHS = (
    "name", "corpus", "corpus.kind", "corpus.uri", "corpus.path", "corpus.data_files", "models", "models.reference",
    "models.reference.engine", "models.reference.model", "models.reference.engine_args", "policy", "policy.kind",
    "output", "output.uri", "work", "tokens", "tokens.tokenizer", "run", "run.workers", "run.address", "shard_tokens",
)  # fmt: skip


@given(
    st.lists(st.tuples(st.sampled_from(_PATHS), _JSON), min_size=1, max_size=4),
    st.sampled_from(["curate", "train_reference"]),
)
def test_whatever_is_sent_the_answer_is_a_spec_or_a_problem(changes: list[tuple[str, Any]], kind: str) -> None:
    settings = Settings(data_dir=Path("/nonexistent/data"), allow_root=("/nonexistent/root",))
    content: Any = make_spec(Path("/nonexistent/root"))
    for path, value in changes:
        *folders, last = path.split(".")
        inner = content
        for folder in folders:
            inner = inner.setdefault(folder, {}) if isinstance(inner, dict) else {}
        if isinstance(inner, dict):
            inner[last] = value
    try:
        admitted = submit(settings, content, kind)
    except Problem as problem:
        assert problem.status in (403, 422)
    else:
        assert admitted.content["corpus"]["uri"].startswith("/nonexistent/root/")
