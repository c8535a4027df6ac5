"""The house rules of who may import whom, checked against the code itself."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CURATOR = ROOT / "curator"
SERVICE = ROOT / "service"
PLUGIN_FOLDERS = ("corpora", "scorers", "policies", "outputs", "exports")
HEAVY = ("ray", "torch", "transformers", "vllm", "datasets", "fastapi", "httpx")


def imports_of(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    """Absolute names of the modules that a file imports; `from a import b` counts as `a.b` and `a`."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules(folder: Path = CURATOR) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def uses(path: Path, package: str) -> bool:
    return any(name == package or name.startswith(package + ".") for name in imports_of(path))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def plugins(folder: str) -> list[Path]:
    """Files of a plug-in folder that define a config with a tag."""
    tag = "engine: Literal[" if folder == "scorers" else "kind: Literal["
    return [path for path in sorted((CURATOR / folder).glob("*.py")) if tag in path.read_text()]


def test_ray_is_imported_only_in_cluster_in_ray_train_and_in_the_services_launcher() -> None:
    found = {relative(path) for path in [*modules(), *modules(SERVICE)] if uses(path, "ray")}
    assert found == {"curator/cluster.py", "curator/training/reference/ray_train.py", "service/launcher.py"}


def test_the_service_runs_no_engine_itself() -> None:
    found = {relative(path) for path in modules(SERVICE) if uses(path, "torch") or uses(path, "vllm")}
    assert not found


def test_vllm_is_imported_only_by_its_own_scorers() -> None:
    assert all(path.name.startswith("vllm") for path in modules() if uses(path, "vllm"))


def test_torch_is_imported_only_where_models_run_or_train() -> None:
    allowed = ("curator/scorers/", "curator/training/", "curator/loading.py")
    assert all(relative(path).startswith(allowed) for path in modules() if uses(path, "torch"))


def test_the_service_is_imported_only_by_the_cli_and_lazily() -> None:
    assert all(relative(path) == "curator/cli.py" for path in modules() if uses(path, "service"))
    assert not any(name.startswith("service") for name in imports_of(CURATOR / "cli.py", top_level_only=True))
    assert not any(uses(path, "fastapi") for path in modules())


@pytest.mark.parametrize("folder", PLUGIN_FOLDERS)
def test_plugins_import_neither_each_other_nor_what_stands_above_them(folder: str) -> None:
    above = {"spec", "plan", "pipeline", "stages", "cluster", "manifest", "publish", "cli", "report", "training"}
    files = plugins(folder)
    assert files, f"no plug-in found in {folder}"
    others = {f"curator.{other.relative_to(CURATOR).with_suffix('').as_posix().replace('/', '.')}" for f in PLUGIN_FOLDERS for other in plugins(f)}  # fmt: skip # noqa: E501
    for path in files:
        names = set(imports_of(path))
        own = f"curator.{folder}.{path.stem}"
        chooser = relative(path) == "curator/scorers/auto.py"  # its task is to choose between two engines
        assert chooser or not names & (others - {own}), f"{relative(path)} imports another plug-in"
        assert not any(name.startswith(tuple(f"curator.{a}" for a in above)) for name in names), relative(path)
        engines = {name.split(".")[0] for name in imports_of(path, top_level_only=True)}
        assert not engines & set(HEAVY), f"{relative(path)} imports an engine at its top"


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ("data.py", "curator."),
        ("errors.py", "curator."),
        ("storage.py", "curator.spec"),
        ("spec.py", "curator.stages"),
        ("plan.py", "curator.stages"),
        ("cluster.py", "curator.stages"),
    ],
)
def test_the_ground_floor_knows_nothing_of_the_upper_ones(low: str, high: str) -> None:
    allowed = {"curator.errors"}
    found = {name for name in imports_of(CURATOR / low) if name.startswith(high) and name not in allowed}
    assert not found


def test_importing_curator_loads_nothing_heavy() -> None:
    code = f"import sys, curator, curator.spec; print([m for m in {HEAVY!r} if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


def test_every_public_name_exists_and_is_listed() -> None:
    import curator

    assert sorted(curator.__all__) == curator.__all__
    assert all(callable(getattr(curator, name)) for name in curator.__all__)
    with pytest.raises(AttributeError, match="nothing_like_this"):
        _ = curator.nothing_like_this
