"""The plan that an output keeps: frozen by the first run, found again by every later one, refused to any other spec.

Invariant: nothing is written into a folder that holds something else, and no output is read back as corpus.
"""

from collections.abc import Sequence

from curator import storage
from curator.data import SourceFile
from curator.errors import CorpusError, OutputError, SpecError
from curator.manifest import CALIBRATION, CARD, MANIFEST, QUARANTINE, REPORT
from curator.plan import PLAN, Plan, list_sources, make_plan, read_plan
from curator.spec import CurationSpec, differences, stage_keys, stage_sections

_OWN_NAMES = (CALIBRATION, CARD, MANIFEST, QUARANTINE, REPORT, "curated", "weights")
_OUTPUT_EXAMPLES = (PLAN, *_OWN_NAMES[:5], "curated/00000.parquet", "curated/_receipts/00000.json", "_staging/x.tmp")
_WORK_EXAMPLES = (
    "key/tokens/key/00000.parquet",
    "key/tokens/key/_receipts/00000.json",
    "key/scores/key/canary.json",
    "_staging/x.tmp",
)


def open_plan(spec: CurationSpec) -> Plan:
    """The plan of this output, frozen now if it is new.

    Raises:
        SpecError: the spec cannot be planned, or its output lies within its corpus.
        OutputError: the output belongs to another spec (the message names every field that differs) or to someone else.
        CorpusError: a source changed since the plan was frozen.
    """
    frozen = storage.exists(storage.join(spec.output_root, PLAN))
    plan = find_plan(spec)
    if frozen or write_plan(spec.output_root, plan):
        return plan
    return find_plan(spec)  # another run froze its plan in the meantime


def find_plan(spec: CurationSpec) -> Plan:
    """The frozen plan of this output if there is one and it fits the spec, else a new one; writes nothing."""
    frozen = read_plan(spec.output_root)
    if frozen is None:
        check_vacant(spec.output_root)
        _check_apart(spec)
        return make_plan(spec)
    check_same_spec(frozen, spec)
    _check_sources(frozen, list_sources(spec))
    return frozen


def write_plan(directory: str, plan: Plan) -> bool:
    """Freeze a plan; False if the folder has one already."""
    return storage.write_once(directory, PLAN, plan.model_dump_json(indent=1).encode())


def check_same_spec(plan: Plan, spec: CurationSpec, content: str = "dataset") -> None:
    """Raise OutputError if the output was planned for other content, naming the fields and the way on."""
    old = CurationSpec.model_validate(plan.spec)
    if plan.content != content:
        raise OutputError(f"{spec.output.uri!r} holds {plan.content}, not {content}; choose another output")
    if stage_keys(old) == stage_keys(spec):
        return
    changed = differences(stage_sections(old), stage_sections(spec))
    listing = "".join(f"\n  {line}" for line in changed)
    if all(line.startswith(("policy.", "policy:")) for line in changed):
        raise OutputError(
            f"{spec.output.uri!r} was made with another policy:{listing}\nstored scores serve any policy; run\n"
            f"  curator select {spec.output.uri} --policy POLICY.yaml --output NEW_DIRECTORY"
        )
    raise OutputError(
        f"{spec.output.uri!r} belongs to another spec:{listing}\nchoose another output.uri, or restore these"
    )


def check_engine(plan: Plan, spec: CurationSpec, name: str) -> None:
    """Raise OutputError if shards scored now would come from other weights or another engine's version than planned."""
    planned = plan.models[name]
    weights = spec.models[name].weights_here()
    if weights not in (None, planned.weights_digest):
        raise OutputError(
            f"models.{name}: the weights of {planned.id!r} have changed since {spec.output.uri!r} was planned: their "
            f"digest was {planned.weights_digest} and is now {weights}; restore those weights to finish this output, "
            "or choose another output.uri (with the same `work`, its tokens are used again)"
        )
    here = spec.models[name].version_here(planned)
    if here not in (None, planned.engine_version):
        raise OutputError(
            f"models.{name}: {spec.output.uri!r} was planned with engine {planned.engine} in version "
            f"{planned.engine_version}, and here it is {here}, which may score otherwise; install that version again "
            "to finish this output, or choose another output.uri (with the same `work`, its tokens are used again)"
        )


def _check_sources(plan: Plan, sources: Sequence[SourceFile]) -> None:
    planned = {source.path: source for source in plan.sources}
    now = {source.path: source for source in sources}
    for path in sorted(planned.keys() | now.keys()):
        if path not in now:
            raise CorpusError(f"corpus: {path!r} was planned and is gone; restore it, or choose another output.uri")
        if path not in planned:
            raise CorpusError(f"corpus: {path!r} is new since the plan was frozen; choose another output.uri")
        if planned[path] != now[path]:
            raise CorpusError(f"corpus: {path!r} changed since the plan was frozen; choose another output.uri")


def check_vacant(directory: str) -> None:
    """Raise OutputError if a folder without a plan holds files that a run would mistake for its own, or overwrite."""
    foreign = [name for name in storage.list_names(directory) if name in _OWN_NAMES]
    if foreign:
        raise OutputError(
            f"{directory!r} has no {PLAN} but holds {', '.join(foreign)}, which no run of this spec made; choose "
            "another output, or move these away"
        )


def _check_apart(spec: CurationSpec) -> None:
    """Raise SpecError if the corpus' glob would match what the run writes: a resumed run would read its own output."""
    corpus = spec.corpus.uri if spec.corpus.kind != "hub" else storage.join(spec.corpus.path, "**")
    written = [(spec.output_root, name) for name in _OUTPUT_EXAMPLES]
    written += [(spec.work_root, name) for name in _WORK_EXAMPLES]
    for root, name in written:
        if storage.matches(corpus, storage.join(root, name)):
            raise SpecError(
                f"output.uri: the corpus {corpus!r} would match what is written to {root!r}, such as {name}; choose "
                "a folder outside the corpus, or narrow its glob"
            )
