"""Training a reference model: `curator train-reference SPEC`.

A reference says how likely good text finds each token, so it is the base, fine-tuned on good data (Rho-1, Lin et al.
2024, arXiv:2404.07965, sec. 3.1: same base as the model to be trained, 3 epochs, 5e-5 falling along a cosine). What
comes out is a plain model directory that `engine: transformers` and `engine: vllm` load.

Invariant: the output appears whole or not at all, and a finished one is never overwritten: the same spec over the same
data gives it back, anything else is an error. Its tokenizer is the base's, checked by fingerprint.
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from curator.data import StrictModel
from curator.errors import OutputError, TrainingError
from curator.tokens.tokenizer import load_tokenizer
from curator.training.documents import GoodData, read_documents
from curator.training.spec import Say, TrainSpec

_RECORD = "training.json"


class TrainResult(StrictModel):
    """What was trained, as recorded in the output's training.json."""

    output: str
    spec: TrainSpec
    data_digest: str = Field(description="sha256 over the token ids of the good data")
    documents: int
    tokens: int = Field(description="of the good data, held-out part included")
    bad_rows: dict[str, int] = Field(description="rows that could not be learned, by reason")
    steps: int
    trained_tokens: int = Field(description="tokens seen in all steps, repeated ones counted again")
    seconds: float
    loss_before: float | None = Field(description="mean loss of the held-out tokens under the base, in nats")
    loss_after: float | None = Field(description="the same under the reference")


def train_reference(spec: TrainSpec, say: Say | None = None) -> TrainResult:
    """Fine-tune a base model on good data.

    Args:
        spec: what to train on what.
        say: takes progress lines; default prints them.

    Returns:
        What was trained; also when the output already holds exactly this training.

    Raises:
        OutputError: the output directory holds something else.
        CorpusError: the corpus has no files.
        TrainingError: no usable row, or a base that cannot be loaded or trained so.
    """
    say = say or _print_line
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TrainingError("training a reference runs in one process; start it without torchrun or accelerate launch")
    output = Path(spec.output).expanduser().absolute()
    if output.is_dir() and any(output.iterdir()) and not (output / _RECORD).is_file():
        raise OutputError(f"{str(output)!r} already holds something else; name another output or remove it")
    # Threads that spin at a barrier starve each other on shared cores: on two cores with a load of 4, a step on two
    # threads was measured at 35 s, and at 5 s when they sleep. OpenMP reads this once, when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    data = read_documents(spec.corpus, load_tokenizer(spec.base, spec.revision, spec.tokens))
    _report_data(data, say)
    if (output / _RECORD).is_file():
        return _find_finished(output, spec, data.digest(), say)
    output.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        result = _train(spec, data, staging, output, say)
        staging.chmod(0o755)
        staging.rename(output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    say(f"reference written to {output}")
    return result


def _print_line(line: str) -> None:
    print(line, flush=True)


def _report_data(data: GoodData, say: Say) -> None:
    say(f"good data: {len(data.documents):,} documents, {data.tokens:,} tokens")
    if data.bad_rows:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(data.bad_rows.items()))
        say(f"left out: {data.bad_rows.total():,} rows ({reasons}); for example {'; '.join(data.examples)}")
    if not data.documents:
        raise TrainingError("the corpus has no row to learn from; check corpus.uri and corpus.text_field")


def _find_finished(output: Path, spec: TrainSpec, digest: str, say: Say) -> TrainResult:
    """The result that is already there, if it is of the same spec and data."""
    remedy = "name another output or remove it"
    try:
        found = TrainResult.model_validate_json((output / _RECORD).read_bytes())
    except ValidationError as error:
        raise OutputError(f"{str(output / _RECORD)!r} is not a record of this version; {remedy}") from error
    old, new = found.spec.model_dump(exclude={"output"}), spec.model_dump(exclude={"output"})
    changed = [f"{name}: {old[name]!r} became {new[name]!r}" for name in new if old[name] != new[name]]
    if found.data_digest != digest and not changed:
        changed = ["the good data has other tokens"]
    if changed:
        raise OutputError(f"{str(output)!r} holds a reference of another training ({'; '.join(changed)}); {remedy}")
    say(f"{output} already holds this reference; nothing to train")
    return found


def _train(spec: TrainSpec, data: GoodData, staging: Path, output: Path, say: Say) -> TrainResult:
    from curator.training.fine_tune import fine_tune, load_base, save_model

    base = load_base(spec)
    outcome = fine_tune(base.model, spec, data.documents, staging, say)
    result = TrainResult(
        output=str(output),
        spec=spec,
        data_digest=data.digest(),
        documents=len(data.documents),
        tokens=data.tokens,
        bad_rows=dict(data.bad_rows),
        **outcome._asdict(),
    )
    save_model(base, spec, staging)
    _check_tokenizer(spec, staging, say)
    (staging / "README.md").write_text(_make_card(result), encoding="utf-8")
    (staging / _RECORD).write_text(result.model_dump_json(indent=1), encoding="utf-8")
    return result


def _check_tokenizer(spec: TrainSpec, folder: Path, say: Say) -> None:
    """The reference must tokenise as its base does, or the two cannot be compared token by token."""
    base = load_tokenizer(spec.base, spec.revision, spec.tokens)
    own = load_tokenizer(str(folder), None, spec.tokens)
    if own.fingerprint != base.fingerprint:
        raise TrainingError(
            f"the tokenizer of {spec.base!r} does not survive being saved; convert the base to a directory with a "
            "tokenizer.json first"
        )
    if own.bos_id != base.bos_id:
        say(f"trained with BOS {base.bos_id}: set tokens.bos: {str(base.bos_id is not None).lower()} when scoring")


def _make_card(result: TrainResult) -> str:
    spec = result.spec
    front: list[str] = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    held = "none was held out"
    if result.loss_before is not None and result.loss_after is not None:
        held = f"{result.loss_before:.4f} under the base, {result.loss_after:.4f} under this model"
    facts: dict[str, Any] = {
        "base": f"`{spec.base}`" + (f" at `{spec.revision}`" if spec.revision else ""),
        "good data": f"{spec.corpus.kind}, {result.documents:,} documents, {result.tokens:,} tokens",
        "training": f"{result.steps:,} steps, {result.trained_tokens:,} tokens, {result.seconds:,.0f} s",
        "learning rate": f"{spec.learning_rate:g}, falling to 0 along a cosine",
        "held-out loss (nats)": held,
    }
    lines = [*front, "tags: [reference-model]", "---", "", "# Reference model", ""]
    lines += ["It says how likely good data finds a token; made by `curator train-reference`.", ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items()), ""]
    return "\n".join(lines)
