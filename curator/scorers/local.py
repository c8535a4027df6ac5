"""What engines share that run a checkpoint themselves: finding it, and resolving its dtype and context."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from curator.data import IntArray, ModelConfig, ModelIdentity
from curator.errors import ScorerError
from curator.scorers.checkpoint import Checkpoint, digest_local, inspect_checkpoint

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
HeadPrecision = Literal["exact", "rounded"]
HEAD_DESCRIPTION = (
    "how a bfloat16 or float16 model's logits are kept on a CPU: exact = in float32; rounded = in the model's type, "
    "faster, with a larger error (README)"
)

_LONGEST_DEFAULT_CONTEXT = 8192


class LocalModel(ModelConfig):
    """A checkpoint that is run where the worker is."""

    packages: ClassVar[tuple[str, ...]] = ()
    """Those that can change a score, the engine's own first."""

    dtype: Dtype = Field(
        default="auto",
        description="of weights and activations; auto = float32 for float32 checkpoints, else bfloat16 "
        "(but float16 for float16 checkpoints on a GPU, and float32 on a CPU without bfloat16 instructions)",
    )

    def tokenizer_source(self) -> str:
        """The model's own place."""
        return self.model

    def version_here(self, planned: ModelIdentity) -> str | None:
        """The installed packages', with the planned way of scoring; None where one of them is not installed."""
        if any(installed_version(package) is None for package in self.packages):
            return None
        _, comma, way = planned.engine_version.partition(", ")
        return f"{versions_of(planned.engine, *self.packages)}{comma}{way}"

    def weights_here(self) -> str | None:
        """Of a directory or .gguf file, as it is now; a hub model is fixed by its revision."""
        return digest_local(self.model)

    def identify_checkpoint(self, engine: str, engine_version: str) -> ModelIdentity:
        """Check that the checkpoint is whole and safe, and resolve revision, dtype and context; loads no weights."""
        found = inspect_checkpoint(self.model, self.revision)
        return ModelIdentity(
            id=self.model,
            revision=found.revision,
            weights_digest=found.weights_digest,
            engine=engine,
            engine_version=engine_version,
            dtype=_resolve_dtype(self.dtype, found.stored_type, on_gpu=self.gpus > 0),
            context=self._resolve_context(found),
            parameters=found.parameters,
        )

    def _resolve_context(self, found: Checkpoint) -> int:
        own = found.context
        if self.context is None:
            return min(own or _LONGEST_DEFAULT_CONTEXT, _LONGEST_DEFAULT_CONTEXT)
        if own is not None and self.context > own:
            raise ScorerError(
                f"context {self.context} is longer than the {own} tokens that model {self.model!r} was made for; set "
                f"context to at most {own}, or leave it out"
            )
        return self.context


def versions_of(engine: str, *packages: str) -> str:
    """Versions of the packages that can change a score, such as `5.19.0+torch2.13.0+cpu`.

    Raises:
        ScorerError: one is not installed; says which extra brings it.
    """
    found = [installed_version(package) for package in packages]
    if None in found:
        missing = packages[found.index(None)]
        raise ScorerError(f"engine {engine} needs {missing}, which is not installed: install token-curator[{engine}]")
    return f"{found[0]}" + "".join(f"+{name}{number}" for name, number in zip(packages[1:], found[1:], strict=True))


def installed_version(package: str) -> str | None:
    """Version of a package or of its build for CPUs, which has a name of its own; None where neither is installed."""
    for name in (package, f"{package}-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def check_ids(sequences: Sequence[IntArray], vocabulary: int) -> None:
    """Refuse ids that the model has no embedding for; raises ScorerError naming the first such sequence."""
    for number, ids_T in enumerate(sequences):
        if len(ids_T) and (ids_T.min() < 0 or ids_T.max() >= vocabulary):
            raise ScorerError(
                f"sequence {number} holds token id {int(ids_T.max())} or {int(ids_T.min())}, outside the model's "
                f"{vocabulary} embeddings; tokenize with the model's own tokenizer"
            )


def _resolve_dtype(dtype: Dtype, stored_type: str, *, on_gpu: bool) -> str:
    if dtype != "auto":
        return dtype
    if stored_type in ("F32", "F64"):
        return "float32"
    if on_gpu:
        return "float16" if stored_type == "F16" else "bfloat16"
    return "bfloat16" if _cpu_multiplies_bfloat16() else "float32"


def _cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has bfloat16 products; without them bfloat16 is emulated, slower than float32."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return False
    lines = (line for line in info.read_text().splitlines() if line.startswith(("flags", "Features")))
    flags = set(next(lines, "").split())
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
