"""Training a reference model: `curator train-reference SPEC`.

A reference says how likely good text finds each token, so it is the base, fine-tuned on good data (Rho-1, Lin et al.
2024, arXiv:2404.07965, sec. 3.1: same base as the model to be trained, 3 epochs, 5e-5 falling along a cosine). What
comes out is a plain model directory that `engine: transformers` and `engine: vllm` load.

Invariant: the output appears whole or not at all, and a finished one is never overwritten: the same spec over the same
base and data gives it back, anything else is an error. An interrupted training goes on where it last saved. The
tokenizer of what comes out is the base's, checked by fingerprint.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from signal import SIGTERM
from typing import TYPE_CHECKING, Any, NamedTuple

from curator import interrupts
from curator.errors import OutputError, ScorerError, TrainingError
from curator.scorers.checkpoint import Checkpoint, inspect_checkpoint
from curator.tokens.tokenizer import Tokenizer, load_tokenizer
from curator.training.reference.documents import GoodData, read_dataset, read_documents
from curator.training.reference.model_card import find_license, make_card
from curator.training.reference.place import find_free_output
from curator.training.reference.record import RECORD, TrainResult, make_record, read_finished
from curator.training.reference.spec import Leaving, Say, TrainSpec
from curator.training.reference.staging import Staging, clear_leftover, open_staging, staging_of
from curator.training.reference.writing import flush, written

if TYPE_CHECKING:
    from curator.training.reference.fine_tune import Outcome

__all__ = ["TrainResult", "train_here", "train_reference"]

_NAMED = 3


class _Given(NamedTuple):
    """What a training starts from, read and identified."""

    tokenizer: Tokenizer
    data: GoodData
    data_digest: str
    base: Checkpoint


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
        OutputError: the output directory holds something else, is no place for a reference or cannot be written, or
            its training is another's, damaged or still at work.
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
    find_free_output(spec.output)  # here, as every worker would find it out by itself, and late
    from curator.training.reference.ray_train import train_on_ray

    return train_on_ray(spec, say)


def _by_signal() -> AbstractContextManager[Callable[[], bool]]:
    return interrupts.postponed(SIGTERM)


def train_here(spec: TrainSpec, say: Say, leaving: Leaving = _by_signal) -> TrainResult:
    """Train as one process, or as one of those that a launcher started together; see `train_reference`.

    Args:
        spec: what to train on what.
        say: takes progress lines.
        leaving: who wants it to end; default whoever sends this process a Ctrl-C or SIGTERM.
    """
    output = find_free_output(spec.output)
    # Threads that spin at a barrier starve each other on shared cores: on two cores with a load of 4, a step on two
    # threads was measured at 35 s, and at 5 s when they sleep. OpenMP reads this once, when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import torch

    from curator.training.reference import distributed

    with distributed.joined(on_cpu=not torch.accelerator.is_available()):
        return _train_together(spec, output, say if distributed.is_main() else _say_nothing, leaving)


def _train_together(spec: TrainSpec, output: Path, say: Say, leaving: Leaving) -> TrainResult:
    from curator.training.reference import distributed
    from curator.training.reference.agreement import check_alike

    given = _prepare(spec, say)
    check_alike({"good data": given.data_digest, "base": given.base.weights_digest})
    finished = (output / RECORD).is_file()
    distributed.wait_for_all()
    identity = {
        "spec": spec.decisive(),
        "weights": f"{given.base.weights_digest} of {spec.base}",
        "data_digest": given.data_digest,
    }
    if finished:
        result = read_finished(output, spec, given.base.weights_digest, given.data_digest)
        say(f"{output} already holds this reference; nothing to train")
        if distributed.is_main():
            clear_leftover(output, identity)
        return result
    with _open(output, identity, say) as staging:
        # Another training of the same may have ended while this one read its data.
        if not distributed.of_main(staging.is_finished or (output / RECORD).is_file()):
            _train(spec, given, staging, output, say, leaving)
        if distributed.is_main() and staging.is_finished:
            staging.publish(output)
    distributed.wait_for_all()
    say(f"reference written to {output}")
    return read_finished(output, spec, given.base.weights_digest, given.data_digest)


def _prepare(spec: TrainSpec, say: Say) -> _Given:
    tokenizer = _load_tokenizer(spec)
    data = _read(spec, tokenizer)
    _report_data(data, say)
    return _Given(tokenizer, data, data.digest(), _identify(spec))


def _load_tokenizer(spec: TrainSpec) -> Tokenizer:
    """The base's, which `tokens.tokenizer` may name, too, but not another."""
    tokenizer = load_tokenizer(spec.base, spec.revision, spec.tokens)
    named = spec.tokens.tokenizer
    if named is not None and load_tokenizer(named, None, spec.tokens).fingerprint != tokenizer.fingerprint:
        raise TrainingError(
            f"tokens.tokenizer: {named!r} is not the tokenizer of base {spec.base!r} (their fingerprints differ), and "
            "a reference is trained on its base's tokens; leave tokens.tokenizer out, or name a base that has it"
        )
    return tokenizer


def _identify(spec: TrainSpec) -> Checkpoint:
    """Which weights the base has, told as scorers tell it."""
    try:
        return inspect_checkpoint(spec.base, spec.revision)
    except ScorerError as error:
        raise TrainingError(f"base: {error}") from error


@contextmanager
def _open(output: Path, identity: dict[str, Any], say: Say) -> Iterator[Staging]:
    """The staging folder, taken by the main process; the others fail with it."""
    from curator.training.reference import distributed
    from curator.training.reference.agreement import check_shared

    if not distributed.is_main():
        if not distributed.of_main(1.0):
            raise OutputError("the main process cannot take the staging folder; its own error says why")
        check_shared(staging_of(output))
        yield staging_of(output)
        return
    with ExitStack() as stack:
        try:
            staging = stack.enter_context(open_staging(output, identity, say))
        except BaseException:
            distributed.of_main(0.0)
            raise
        distributed.of_main(1.0)
        check_shared(staging)
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


def _train(spec: TrainSpec, given: _Given, staging: Staging, output: Path, say: Say, leaving: Leaving) -> None:
    """Train, and finish `staging.model`."""
    from curator.training.reference import distributed
    from curator.training.reference.checkpoint_files import load_base
    from curator.training.reference.fine_tune import fine_tune

    licensed = find_license(spec)
    identified = spec.model_copy(update={"revision": given.base.revision or spec.revision})
    base = load_base(identified, given.base)
    if base.unused:
        some = ", ".join(base.unused[:_NAMED]) + (", ..." if len(base.unused) > _NAMED else "")
        say(f"{len(base.unused):,} weights of the base are not used by {type(base.model).__name__}: {some}")

    def finish(outcome: "Outcome") -> None:
        if distributed.is_main():
            _check_tokenizer(spec, given, staging.model, say)
            result = _make_result(spec, given, output, outcome)
            _complete(staging.model, make_card(result, licensed), make_record(result))

    fine_tune(base, identified, given.data.documents, staging, finish, say, leaving)


def _make_result(spec: TrainSpec, given: _Given, output: Path, outcome: "Outcome") -> TrainResult:
    from curator.training.reference import distributed

    data = given.data
    return TrainResult(
        output=str(output),
        spec=spec,
        base_digest=given.base.weights_digest,
        base_revision=given.base.revision,
        data_digest=given.data_digest,
        documents=len(data.documents),
        tokens=data.tokens,
        bad_rows=dict(data.bad_rows),
        unweighted_rows=data.unweighted_rows,
        processes=distributed.processes(),
        **outcome._asdict(),
    )


def _complete(folder: Path, card: str, record: str) -> None:
    """Put card and record beside the weights, the record at last and at once: with it the model is finished."""
    draft = folder / f".{RECORD}"
    with written(draft):
        (folder / "README.md").write_text(card, encoding="utf-8")
        draft.write_text(record, encoding="utf-8")
        flush(folder)
        draft.rename(folder / RECORD)


def _check_tokenizer(spec: TrainSpec, given: _Given, folder: Path, say: Say) -> None:
    """The reference must tokenise as its base does, or the two cannot be compared token by token."""
    own = load_tokenizer(str(folder), None, spec.tokens)
    if own.fingerprint != given.tokenizer.fingerprint:
        raise TrainingError(
            f"the tokenizer of {spec.base!r} does not survive being saved; convert the base to a directory with a "
            "tokenizer.json first"
        )
    trained_with = given.tokenizer.bos_id if spec.dataset is None else given.data.bos_id
    if own.bos_id != trained_with:
        say(f"trained with BOS {trained_with}: set tokens.bos: {str(trained_with is not None).lower()} when scoring")
