"""Settings: where they come from, and that the documentation names every one."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from curator.errors import SpecError
from service.settings import Settings, load_settings

DOCS = Path(__file__).parents[2] / "docs" / "service.md"


def documented_row(name: str) -> str:
    field = Settings.model_fields[name]
    default = field.default
    shown = "" if default in (None, ()) else f"`{default}`"
    return f"| `{name}` | {shown} | {field.description} |"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented_with_its_default(name: str) -> None:
    assert documented_row(name) in DOCS.read_text(encoding="utf-8").splitlines()


def test_the_documentation_names_no_setting_that_is_gone() -> None:
    table = DOCS.read_text(encoding="utf-8").split("## Settings")[1].split("##")[0]
    rows = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    assert rows == list(Settings.model_fields)


def test_the_command_line_comes_before_the_environment_and_that_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "service.toml"
    file.write_text('port = 1\nhost = "file"\nallow_root = ["/file"]\nmax_running_jobs = 7\n')
    monkeypatch.setenv("CURATOR_HOST", "environment")
    monkeypatch.setenv("CURATOR_PORT", "2")
    monkeypatch.setenv("CURATOR_ALLOW_MODELS", "org/one@main, org/two")
    settings = load_settings(file, port=3, data_dir=None)
    assert (settings.port, settings.host, settings.max_running_jobs) == (3, "environment", 7)
    assert settings.allow_root == ("/file",)
    assert settings.allow_models == ("org/one@main", "org/two")


def test_wrong_settings_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "service.toml"
    file.write_text("prot = 1\n")
    with pytest.raises(ValidationError, match="prot"):
        load_settings(file)
    monkeypatch.setenv("CURATOR_STALLED_S", "0")
    with pytest.raises(ValidationError, match="stalled_s"):
        load_settings()


def test_secrets_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURATOR_DATABASE_URL", "postgresql://user:hunter2@host/name")
    assert "hunter2" not in repr(load_settings()) + load_settings().model_dump_json()


@pytest.mark.parametrize("text", ['["/a", "s3://b"]', ' ["/a","s3://b"]', "/a, s3://b"])
def test_lists_in_the_environment_are_json_or_separated_by_commas(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURATOR_ALLOW_ROOT", text)
    assert load_settings().allow_root == ("/a", "s3://b")


@pytest.mark.parametrize("text", ['["/a"', "[/a, /b]", '["/a", 1]', '[["/a"]]'])
def test_a_list_that_is_no_json_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURATOR_ALLOW_ROOT", text)
    with pytest.raises(ValidationError, match="allow_root"):
        load_settings()


@pytest.mark.parametrize("root", ["data", "./data", "~/data", "s3:/bucket", "s3://", "gs:///x", "http://host/x", ""])
def test_a_root_that_is_no_place_is_refused(root: str) -> None:
    with pytest.raises(ValidationError, match="neither an absolute path nor s3://"):
        Settings(allow_root=("/a", root))


@pytest.mark.parametrize(("heartbeat_s", "stalled_s"), [(10, 20), (10, 15), (20, 30)])
def test_one_late_sign_of_life_may_not_cost_a_job_its_owner(heartbeat_s: float, stalled_s: float) -> None:
    with pytest.raises(ValidationError, match="more than twice heartbeat_s"):
        Settings(heartbeat_s=heartbeat_s, stalled_s=stalled_s)
    Settings(heartbeat_s=heartbeat_s, stalled_s=2 * heartbeat_s + 0.1)


def test_drivers_on_a_cluster_need_one() -> None:
    with pytest.raises(ValidationError, match="launcher ray needs a cluster; set ray_address"):
        Settings(launcher="ray")
    assert Settings(launcher="ray", ray_address="http://head:8265").launcher == "ray"


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"missing\.toml"):
        load_settings(tmp_path / "missing.toml")


def test_a_misspelt_address_of_the_database_does_not_show(tmp_path: Path) -> None:
    file = tmp_path / "service.toml"
    file.write_text('databse_url = "postgresql://user:hunter2@host/name"\n')
    with pytest.raises(ValidationError, match="databse_url") as caught:
        load_settings(file)
    assert "hunter2" not in str(caught.value)
