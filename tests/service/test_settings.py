"""Settings: where they come from, and that the documentation names every one."""

from pathlib import Path

import pytest
from pydantic import ValidationError

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
