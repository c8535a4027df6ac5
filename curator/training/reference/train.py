"""Training a reference model: `curator train-reference SPEC`.

A reference says how likely good text finds each token, so it is the base, fine-tuned on good data (Rho-1, Lin et al.
2024, arXiv:2404.07965, sec. 3.1: same base as the model to be trained, 3 epochs, 5e-5 falling along a cosine). What
comes out is a plain model directory that `engine: transformers` and `engine: vllm` load.

Invariant: the output appears whole or not at all, and a finished one is never overwritten: the same spec over the same
data gives it back, anything else is an error. An interrupted training goes on where it last saved. The tokenizer of
what comes out is the base's, checked by fingerprint.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from curator.errors import OutputError, TrainingError
from curator.tokens.tokenizer import Tokenizer, load_tokenizer
from curator.training.reference.documents import GoodData, read_dataset, read_documents
from curator.training.reference.model_card import make_card
from curator.training.reference.record import RECORD, TrainResult, find_finished, make_record
from curator.training.reference.spec import Say, TrainSpec
from curator.training.reference.staging import Staging, find_output, open_staging, staging_of

__all__ = ["TrainResult", "train_here", "train_reference"]

_NAMED = 3


def train_reference(spec: TrainSpec, say: Say | None = None) -> TrainResult:
    """Fine-tune a base model on good data.

    Started by torchrun or accelerate launch, all processes call it and share every step; alone, it starts
    `spec.run.workers` processes through Ray Train if that is more than one.

    Args:
        spec: what to train on what.
        say: takes progress lines; default prints them.

    Returns:
        What was trained; also when the output already holds exactly this training.

    Raises:
        OutputError: the output directory holds something else or is on an object store, or its training is another's
            or still at work.
        CorpusError: the corpus has no files.
        TrainingError: no usable row, or a base that cannot be loaded or trained so.
        ClusterError: the workers cannot be had.
    """
    say = say or _print_line
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if spec.run.workers == 1:
        return train_here(spec, say)
    if launched:
        raise TrainingError(
            f"run.workers is {spec.run.workers}, and torchrun or accelerate launch has started processes already; "
            "leave run.workers out, or start the command without them"
        )
    find_free_output(spec)  # here, as every worker would find it out by itself, and late
    from curator.training.reference.ray_train import train_on_ray

    return train_on_ray(spec, say)


def train_here(spec: TrainSpec, say: Say) -> TrainResult:
    """Train as one process, or as one of those that a launcher started together; see `train_reference`."""
    output = find_free_output(spec)
    # Threads that spin at a barrier starve each other on shared cores: on two cores with a load of 4, a step on two
    # threads was measured at 35 s, and at 5 s when they sleep. OpenMP reads this once, when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import torch

    from curator.training.reference import distributed

    with distributed.joined(on_cpu=not torch.accelerator.is_available()):
        return _train_together(spec, output, say if distributed.is_main() else _say_nothing)


def find_free_output(spec: TrainSpec) -> Path:
    """Where the reference will stand; raises OutputError for a place that is taken, or that none can stand at."""
    output = find_output(spec.output)
    if output.is_dir() and any(output.iterdir()) and not (output / RECORD).is_file():
        raise OutputError(f"{str(output)!r} already holds something else; name another output or remove it")
    return output


def _train_together(spec: TrainSpec, output: Path, say: Say) -> TrainResult:
    from curator.training.reference import distributed

    tokenizer = load_tokenizer(spec.base, spec.revision, spec.tokens)
    data = _read(spec, tokenizer)
    _report_data(data, say)
    digest = data.digest()
    finished = (output / RECORD).is_file()
    distributed.wait_for_all()
    if finished:
        return find_finished(output, spec, digest, say)
    is_main = distributed.is_main()
    with _open(output, {"spec": spec.decisive(), "data_digest": digest}, say) as staging:
        result = _train(spec, data, digest, staging, output, say)
        if is_main:
            _check_tokenizer(spec, tokenizer, data, staging.model, say)
            (staging.model / "README.md").write_text(make_card(result), encoding="utf-8")
            (staging.model / RECORD).write_text(make_record(result), encoding="utf-8")
            staging.publish(output)
    distributed.wait_for_all()
    say(f"reference written to {output}")
    return result


@contextmanager
def _open(output: Path, identity: dict[str, Any], say: Say) -> Iterator[Staging]:
    """The staging folder, taken by the main process; the others fail with it."""
    from curator.training.reference import distributed

    if not distributed.is_main():
        if not distributed.of_main(1.0):
            raise OutputError("the main process cannot take the staging folder; its own error says why")
        yield staging_of(output)
        return
    with ExitStack() as stack:
        try:
            staging = stack.enter_context(open_staging(output, identity, say))
        except BaseException:
            distributed.of_main(0.0)
            raise
        distributed.of_main(1.0)
        yield staging


def _print_line(line: str) -> None:
    print(line, flush=True)


def _say_nothing(line: str) -> None:
    """One process speaks for all."""


def _read(spec: TrainSpec, tokenizer: Tokenizer) -> GoodData:
    if spec.dataset is not None:
        return read_dataset(spec.dataset, tokenizer)
    assert spec.corpus is not None
    return read_documents(spec.corpus, tokenizer)


def _report_data(data: GoodData, say: Say) -> None:
    say(f"good data: {len(data.documents):,} documents, {data.tokens:,} tokens")
    if data.unweighted_rows:
        say(f"{data.unweighted_rows:,} documents keep no token and teach nothing")
    if data.bad_rows:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(data.bad_rows.items()))
        say(f"left out: {data.bad_rows.total():,} rows ({reasons}); for example {'; '.join(data.examples)}")
    if not data.documents and data.unweighted_rows:
        raise TrainingError("the dataset keeps no token at all; select it again with a larger keep ratio")
    if not data.documents:
        raise TrainingError("the corpus has no row to learn from; check corpus.uri and corpus.text_field")


def _train(spec: TrainSpec, data: GoodData, digest: str, staging: Staging, output: Path, say: Say) -> TrainResult:
    from curator.training.reference import distributed
    from curator.training.reference.checkpoint_files import load_base
    from curator.training.reference.fine_tune import fine_tune

    base = load_base(spec)
    if base.unused:
        some = ", ".join(base.unused[:_NAMED]) + (", ..." if len(base.unused) > _NAMED else "")
        say(f"{len(base.unused):,} weights of the base are not used by {type(base.model).__name__}: {some}")
    outcome = fine_tune(base, spec, data.documents, staging, say)
    return TrainResult(
        output=str(output),
        spec=spec,
        data_digest=digest,
        documents=len(data.documents),
        tokens=data.tokens,
        bad_rows=dict(data.bad_rows),
        unweighted_rows=data.unweighted_rows,
        processes=distributed.processes(),
        **outcome._asdict(),
    )


def _check_tokenizer(spec: TrainSpec, base: Tokenizer, data: GoodData, folder: Path, say: Say) -> None:
    """The reference must tokenise as its base does, or the two cannot be compared token by token."""
    own = load_tokenizer(str(folder), None, spec.tokens)
    if own.fingerprint != base.fingerprint:
        raise TrainingError(
            f"the tokenizer of {spec.base!r} does not survive being saved; convert the base to a directory with a "
            "tokenizer.json first"
        )
    trained_with = base.bos_id if spec.dataset is None else data.bos_id
    if own.bos_id != trained_with:
        say(f"trained with BOS {trained_with}: set tokens.bos: {str(trained_with is not None).lower()} when scoring")
