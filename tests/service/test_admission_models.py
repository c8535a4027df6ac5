"""Which models, tokenizers and data sets a tenant may name, and what it may set for an engine."""

import json
from pathlib import Path
from typing import Any

import pytest

from service.admission import AdmittedSpec, admit
from service.problems import Problem
from service.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a.jsonl").write_text('{"text": "some text"}\n')
    return Settings(
        data_dir=tmp_path / "data",
        allow_root=(str(tmp_path / "root"),),
        allow_models=("org/open", "org/pinned@v1", "org/two@v1", "org/two@v2", "gpt2"),
        allow_datasets=("org/texts", "org/fixed@abc123"),
        allow_hosts=("http://models.internal:8000", "https://api.example.com"),
        allow_key_variables=("MODEL_KEY",),
    )


def submit(settings: Settings, **changes: Any) -> AdmittedSpec:
    content: dict[str, Any] = {
        "name": "test",
        "corpus": {"kind": "jsonl", "uri": f"{settings.allow_root[0]}/a.jsonl"},
        "models": {"reference": {"engine": "bigram"}},
        "policy": {"kind": "loss"},
    }
    return admit(
        content | changes,
        settings=settings,
        tenant="alice",
        job_output=str(settings.jobs_dir / "x"),
        owns_job=lambda job_id: False,
        find_upload=lambda tenant, upload: None,
    )


def submit_model(settings: Settings, **model: Any) -> dict[str, Any]:
    content: dict[str, Any] = submit(settings, models={"reference": model}).content["models"]["reference"]
    return content


def refused(settings: Settings, **changes: Any) -> list[str]:
    """Paths of the faults of a 403."""
    with pytest.raises(Problem) as raised:
        submit(settings, **changes)
    assert raised.value.status == 403, raised.value.detail
    return [fault["path"] for fault in raised.value.errors or []]


def refused_model(settings: Settings, **model: Any) -> list[str]:
    return [path.removeprefix("models.reference.") for path in refused(settings, models={"reference": model})]


ENGINES = ("auto", "transformers", "vllm")


# ------------------------------------------------------------------------------------------------ the hub


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("model", "asked", "given_"),
    [
        ("org/open", None, None), ("org/open", "main", "main"), ("gpt2", None, None), ("org/pinned", None, "v1"),
        ("org/pinned", "v1", "v1"), ("org/two", "v1", "v1"), ("org/two", "v2", "v2"),
    ],
)  # fmt: skip
def test_listed_models_pass_and_pins_are_filled_in(
    settings: Settings, engine: str, model: str, asked: str | None, given_: str | None
) -> None:
    sent = {"engine": engine, "model": model} | ({} if asked is None else {"revision": asked})
    assert submit_model(settings, **sent).get("revision") == given_


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("model", "revision"),
    [
        ("org/other", None), ("org/Open", None), ("open", None), ("org/open/", None), ("./org/open", None),
        ("org//open", None), ("org/open", "refs/pr/1"), ("org/open", "0123abcd"), ("org/pinned", "main"),
        ("org/pinned", "v2"), ("org/pinned@v1", None), ("org/two", None), ("org/two", "main"), ("", None),
        ("../org/open", None), ("org/open ", None), ("hf://org/open", None), ("https://huggingface.co/org/open", None),
        ("bigram", None), ("org/open@main", None), ("models/org/open", None),
    ],
)  # fmt: skip
def test_other_models_and_revisions_are_refused(
    settings: Settings, engine: str, model: str, revision: str | None
) -> None:
    assert refused_model(settings, engine=engine, model=model, revision=revision) == ["model"]


def test_a_served_model_needs_a_tokenizer_that_may_be_read(settings: Settings, tmp_path: Path) -> None:
    server = {"engine": "openai", "url": "http://models.internal:8000"}
    file = tmp_path / "root" / "tokenizer.json"
    file.write_text("{}")
    for good in ("org/open", "org/pinned", str(file), str(file.parent)):
        submit_model(settings, **server, model="any name", engine_args={"tokenizer": good})
    pinned = submit_model(settings, **server, model="any name", engine_args={"tokenizer": "org/pinned"})
    assert pinned["revision"] == "v1"
    assert submit_model(settings, **server, model="org/pinned")["revision"] == "v1"
    assert refused_model(settings, **server, model="/etc") == ["model"]
    assert refused_model(settings, **server, model="any name") == ["model"]
    for bad in ("/etc/passwd", "org/other", "x.json", ""):
        assert refused_model(settings, **server, model="m", engine_args={"tokenizer": bad}) == ["engine_args.tokenizer"]


def test_a_tokenizer_of_the_spec_takes_no_pinned_name(settings: Settings) -> None:
    submit(settings, tokens={"tokenizer": "org/open"})
    for bad in ("org/pinned", "org/two", "org/other", "bigram"):
        assert refused(settings, tokens={"tokenizer": bad}) == ["tokens.tokenizer"]


@pytest.mark.parametrize(
    "corpus",
    [
        {"path": "org/texts"},
        {"path": "org/texts", "name": "en", "split": "train[:10%]"},
        {"path": "org/texts", "data_files": ["data/train-*.parquet", "x/**/y.jsonl"]},
        {"path": "org/fixed"},
        {"path": "org/fixed", "revision": "abc123"},
        {"path": "json", "data_files": ["ROOT/a.jsonl"]},
        {"path": "text", "data_files": ["ROOT/*.txt"]},
        {"path": "ROOT"},
        {"path": "ROOT", "data_files": ["a.jsonl", "*.jsonl", "ROOT/a.jsonl"]},
    ],
)
def test_listed_data_sets_folders_and_readers_pass(settings: Settings, corpus: dict[str, Any]) -> None:
    corpus = json.loads(json.dumps(corpus).replace("ROOT", settings.allow_root[0]))
    admitted = submit(settings, corpus={"kind": "hub"} | corpus).content["corpus"]
    assert admitted.get("revision") == ("abc123" if corpus["path"] == "org/fixed" else None)


@pytest.mark.parametrize(
    ("corpus", "path"),
    [
        ({"path": "org/other"}, "path"),
        ({"path": "org/texts", "revision": "refs/pr/3"}, "path"),
        ({"path": "org/fixed", "revision": "main"}, "path"),
        ({"path": "json"}, "path"),
        ({"path": "json", "data_files": []}, "path"),
        ({"path": "pandas", "data_files": ["ROOT/a.jsonl"]}, "path"),
        ({"path": "sql", "data_files": ["ROOT/a.jsonl"]}, "path"),
        ({"path": "webdataset", "data_files": ["ROOT/a.jsonl"]}, "path"),
        ({"path": "json", "data_files": ["a.jsonl"]}, "data_files.0"),
        ({"path": "json", "data_files": ["https://example.com/a.jsonl"]}, "data_files.0"),
        ({"path": "json", "data_files": ["hf://datasets/org/texts/a.jsonl"]}, "data_files.0"),
        ({"path": "json", "data_files": ["zip://*::ROOT/a.zip"]}, "data_files.0"),
        ({"path": "org/texts", "data_files": ["/etc/passwd"]}, "data_files.0"),
        ({"path": "org/texts", "data_files": ["ROOT/a.jsonl"]}, "data_files.0"),
        ({"path": "org/texts", "data_files": ["../other/x"]}, "data_files.0"),
        ({"path": "org/texts", "data_files": ["x", "https://example.com/a"]}, "data_files.1"),
        ({"path": "org/texts", "data_files": ["~/x"]}, "data_files.0"),
        ({"path": "ROOT", "data_files": ["../secret/x"]}, "data_files.0"),
        ({"path": "ROOT", "data_files": ["/etc/passwd"]}, "data_files.0"),
        ({"path": "ROOT", "data_files": ["~root/x"]}, "data_files.0"),
        ({"path": "org/texts", "name": "../../x"}, "name"),
        ({"path": "/etc"}, "path"),
        ({"path": "s3://bucket/x"}, "path"),
    ],
)
def test_other_data_sets_and_files_are_refused(settings: Settings, corpus: dict[str, Any], path: str) -> None:
    corpus = json.loads(json.dumps(corpus).replace("ROOT", settings.allow_root[0]))
    assert f"corpus.{path}" in refused(settings, corpus={"kind": "hub"} | corpus)


# ------------------------------------------------------------------------------------------------ folders


def make_model(folder: Path, *files: str, **config: Any) -> str:
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).write_bytes(b"x")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    return str(folder)


@pytest.mark.parametrize("engine", ENGINES)
def test_model_folders_hold_safetensors_and_run_no_code(settings: Settings, tmp_path: Path, engine: str) -> None:
    root = tmp_path / "root"
    good = [
        make_model(root / "plain", "model.safetensors", "tokenizer.json"),
        make_model(root / "both", "model.safetensors", "pytorch_model.bin"),
        make_model(root / "parts", "model-00001-of-00002.safetensors", "model.safetensors.index.json"),
    ]
    (root / "model.gguf").write_bytes(b"GGUF")
    (root / "cache" / "blobs").mkdir(parents=True)
    (root / "cache" / "blobs" / "123").write_bytes(b"x")
    linked = make_model(root / "cache" / "snapshot", "tokenizer.json")
    (root / "cache" / "snapshot" / "model.safetensors").symlink_to("../blobs/123")
    for model in (*good, str(root / "model.gguf"), linked):
        assert submit_model(settings, engine=engine, model=model)["model"] == model
    coded = make_model(root / "coded", "model.safetensors", auto_map={"AutoModel": "modeling.Evil"})
    tokenizer = make_model(root / "tokenizer", "model.safetensors")
    (root / "tokenizer" / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["evil.py", null]}}')
    escaping = make_model(root / "escaping")
    (root / "escaping" / "model.safetensors").symlink_to("/etc/hostname")
    (root / "weights.bin").write_bytes(b"x")
    pickled = make_model(root / "pickled", "pytorch_model.bin")
    for model in (coded, tokenizer, escaping, pickled, str(root / "weights.bin"), str(root / "a.jsonl")):
        assert refused_model(settings, engine=engine, model=model) == ["model"], model
    for model in (coded, tokenizer, escaping):
        assert refused(settings, tokens={"tokenizer": model}) == ["tokens.tokenizer"]


# ------------------------------------------------------------------------------------------------ engines


def test_sizes_and_number_formats_may_be_set(settings: Settings) -> None:
    vllm = {"scoring": "auto", "head": "exact", "max_num_batched_tokens": 4096, "kv_cache_dtype": "fp8", "seed": 1}
    vllm |= {"gpu_memory_utilization": 0.5, "enforce_eager": True, "quantization": None}
    assert submit_model(settings, engine="vllm", model="org/open", engine_args=vllm)["engine_args"] == vllm
    plain = {"batch_tokens": 2048, "head": "rounded", "compile": True, "packing": None, "attn_implementation": "sdpa"}
    assert submit_model(settings, engine="transformers", model="org/open", engine_args=plain)["engine_args"] == plain


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("trust_remote_code", True), ("trust_remote_code", False), ("worker_cls", "evil.Worker"),
        ("worker_extension_cls", "evil.W"), ("scheduler_cls", "evil.S"), ("logits_processors", ["evil:F"]),
        ("reasoning_parser_plugin", "/tmp/x.py"), ("download_dir", "/tmp"), ("hf_config_path", "/etc"),
        ("tokenizer", "/etc"), ("model", "/etc"), ("hf_overrides", {}), ("hf_token", "x"), ("load_format", "pt"),
        ("model_loader_extra_config", {}), ("kv_transfer_config", {}), ("otlp_traces_endpoint", "http://10.0.0.1"),
        ("master_addr", "10.0.0.1"), ("data_parallel_address", "10.0.0.1"), ("distributed_executor_backend", "evil.E"),
        ("speculative_config", {}), ("log_config_file", "/x"), ("compilation_config", {}), ("additional_config", {}),
        ("io_processor_plugin", "x"), ("default_mm_loras", {}), ("code_revision", "x"),
        ("allowed_local_media_path", "/"), ("generation_config", "/etc"), ("weight_transfer_config", {}),
        ("anything_new", 1), ("quantization", "/etc/passwd"), ("quantization", "../x y"), ("quantization", {"a": 1}),
        ("kv_cache_dtype", ["fp8"]), ("seed", {}),
    ],
)  # fmt: skip
def test_what_names_code_files_or_hosts_may_not_be_set(settings: Settings, name: str, value: Any) -> None:
    args = {name: value}
    assert refused_model(settings, engine="vllm", model="org/open", engine_args=args) == [f"engine_args.{name}"]
    for engine in ("transformers", "auto"):
        with pytest.raises(Problem):
            submit_model(settings, engine=engine, model="org/open", engine_args=args)


@pytest.mark.parametrize("variable", ["HOME", "AWS_SECRET_ACCESS_KEY", "model_key", "CURATOR_DATABASE_URL", ""])
def test_only_listed_variables_may_hold_keys(settings: Settings, variable: str) -> None:
    server = {"engine": "openai", "model": "org/open", "url": "https://api.example.com/v1"}
    submit_model(settings, **server, api_key_env="MODEL_KEY")
    assert refused_model(settings, **server, api_key_env=variable) == ["api_key_env"]
