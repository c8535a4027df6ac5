"""Leave out of an installed environment what no process of an image ever reads, and compile what all of them do.

Left out: tests, headers, static archives, stubs and C sources of the packages; parts of Ray and Arrow that are other
products (RLlib, LLM serving, Flight); the descriptions of AWS's services but those of S3 and of signing
in. pip compiles nothing here: bytecode is written for the modules that the images' processes import, because on a
read-only file system they would be compiled again at every start, and for no others, because that is 60 MB.

    python3 slim.py /opt/curator
"""

import shutil
import subprocess
import sys
from pathlib import Path

FOLDERS = (
    "ray/rllib", "ray/llm", "ray/cpp", "ray/jars", "pyarrow/include", "pyarrow/src",
    "torch/include", "torch/share", "torch/test", "torch/utils/benchmark", "numpy/_core/include",
)  # fmt: skip
FILES = (
    "pyarrow/libarrow_flight.so*", "pyarrow/libarrow_python_flight.so*", "pyarrow/_flight.*so",
    "pyarrow/libarrow_python.so", "pyarrow/libarrow_python.so.*.*",  # the second and third copy of one library
    "zstandard/_cffi.*so",  # for PyPy
    "torch/bin/protoc*", "torch/lib/*.a",
)  # fmt: skip
SUFFIXES = (".pyx", ".pxd", ".pyi", ".a", ".lib", ".h", ".hpp", ".c", ".cpp", ".cu", ".cuh", ".js.map")
TESTED = ("pandas", "numpy", "pyarrow", "ray", "networkx", "sympy", "fsspec", "psutil", "datasets", "grpc")
AWS_SERVICES = ("s3", "sts", "sso", "sso-oidc", "signin")
IMPORTED = (
    "ray", "ray.job_submission", "ray._private.workers.default_worker", "ray._private.log_monitor",
    "ray.autoscaler._private.monitor", "ray.dashboard.dashboard", "ray.dashboard.agent", "ray.scripts.scripts",
    "ray._private.runtime_env.agent.main", "ray.train",
    "pyarrow.parquet", "pyarrow.dataset", "numpy", "pandas", "datasets", "tokenizers", "pydantic", "yaml", "fsspec",
    "zstandard", "rich.progress", "typer", "jinja2", "psutil", "httpx", "tenacity", "s3fs", "aiobotocore.session",
    "fastapi", "uvicorn", "uvloop", "httptools", "sqlalchemy.dialects.postgresql", "sqlalchemy.dialects.sqlite",
    "alembic.command", "psycopg", "pydantic_settings", "prometheus_client",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "torch", "transformers", "transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.modeling_qwen2", "safetensors.torch", "gguf", "xxhash", "urllib.request",
)  # fmt: skip


def size_bytes(folder: Path) -> int:
    """What lies under a folder, links not followed."""
    paths = [folder, *folder.rglob("*")]
    return sum(path.lstat().st_size for path in paths if path.is_file() and not path.is_symlink())


def remove_unread(site: Path) -> None:
    """Remove what is never read."""
    for folder in FOLDERS:
        shutil.rmtree(site / folder, ignore_errors=True)
    for package in TESTED:
        for folder in [path for path in (site / package).rglob("test*") if path.name in ("test", "tests")]:
            shutil.rmtree(folder, ignore_errors=True)
    for folder in (site / "botocore" / "data").glob("*/"):
        if folder.is_dir() and folder.name not in AWS_SERVICES:
            shutil.rmtree(folder)
    for pattern in FILES:
        for path in site.glob(pattern):
            path.unlink()
    for path in [path for path in site.rglob("*") if path.name.endswith(SUFFIXES) and path.is_file()]:
        path.unlink()


def compile_imported(python: Path) -> list[str]:
    """Import each module that is there, which leaves its bytecode; gives those that are not there."""
    program = (
        "import importlib.util, sys\n"
        "for name in sys.argv[1:]:\n"
        "    if importlib.util.find_spec(name.partition('.')[0]) is None: print(name)\n"
        "    else: importlib.import_module(name)\n"
    )
    done = subprocess.run(
        [python, "-c", program, *IMPORTED], check=True, stdout=subprocess.PIPE, text=True,
        env={"HOME": "/tmp", "PATH": "/usr/local/bin:/usr/bin:/bin"},
    )  # fmt: skip
    return done.stdout.split()


def main() -> None:
    """Slim one environment and say by how much."""
    root = Path(sys.argv[1])
    site = next((root / "lib").glob("python3*")) / "site-packages"
    before = size_bytes(site)
    remove_unread(site)
    after = size_bytes(site)
    absent = compile_imported(root / "bin" / "python")
    print(
        f"{before / 1e6:.0f} MB of packages, {after / 1e6:.0f} MB read, {size_bytes(site) / 1e6:.0f} MB with bytecode"
    )
    print(f"not here, so not compiled: {' '.join(absent)}")
    for size, name in sorted(((size_bytes(path), path.name) for path in site.iterdir()), reverse=True)[:14]:
        print(f"{size / 1e6:8.0f} MB  {name}")


if __name__ == "__main__":
    main()
