"""The whole answer: a spec as sent becomes the spec to run, or is refused with every reason.

Places, models and hosts are judged first, in the mapping as sent; so what is not allowed is 403 also in a spec that has
other faults. Then the library's own validation says what is wrong with the rest (422). Last, whatever validation has
filled in is judged like what was sent.
"""

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from curator import storage
from curator.errors import SpecError
from curator.job_directory import JobKind
from curator.spec import CurationSpec, parse_spec, validate
from curator.training.reference.spec import TrainSpec
from service.admission.fields import Found, Keys, find_texts
from service.admission.hosts import check_host
from service.admission.models import (
    check_bigram_model,
    check_data_file,
    check_data_set,
    check_engine_argument,
    check_folder,
    check_label,
    check_model,
    check_output,
    check_reference,
    check_tokenizer,
    text_or_none,
)
from service.admission.places import Places
from service.admission.refusals import Refused, TooWide, hide_secrets
from service.problems import Problem
from service.settings import Settings
from service.uploads import UPLOAD_URI, tenant_folder

_CONFIGS: Mapping[JobKind, type[BaseModel]] = {"curate": CurationSpec, "train_reference": TrainSpec}
_MOST_ERRORS = 100
_LONGEST_NAME = 200


@dataclass(frozen=True)
class AdmittedSpec:
    """A spec that may run.

    Attributes:
        content: the mapping to run: as sent, with uploads resolved, the output filled in, pinned revisions and workers.
        spec: the same, validated.
        name: for lists of jobs.
        output: absolute URI of what comes out.
        uploads: ids of the uploads that it names by upload://.
    """

    content: dict[str, Any]
    spec: CurationSpec | TrainSpec
    name: str
    output: str
    uploads: tuple[str, ...]


def admit(
    content: dict[str, Any],
    *,
    settings: Settings,
    tenant: str,
    job_output: str,
    owns_job: Callable[[str], bool],
    find_upload: Callable[[str, str], Path | None],
    kind: JobKind = "curate",
) -> AdmittedSpec:
    """Decide whether a tenant may have a spec run.

    Args:
        content: the spec as sent; it is not changed.
        settings: say what is allowed.
        tenant: who asks.
        job_output: where the output goes that the spec leaves open; allowed wherever it is.
        owns_job: whether a job id is the tenant's, whose directory may then be read.
        find_upload: the file of an upload, by tenant and upload id; None if that tenant has no such upload.
        kind: what the spec is of.

    Raises:
        Problem: 403 `not_allowed` for places, models, hosts and settings of the cluster; 422 `too_wide` for a glob with
            too much to look through; 422 `invalid_spec` otherwise.
    """
    places = Places.of(settings, tenant_folder(settings, tenant), owns_job)
    judge = _Judge(settings, places, job_output, partial(find_upload, tenant))
    ready = _fill_output(content, kind, job_output)
    judge.look(find_texts(_CONFIGS[kind], ready), ready)
    judge.refuse()
    _settle_run(ready, kind, settings)
    spec = _parse(ready, kind)
    judge.look(find_texts(_CONFIGS[kind], spec.model_dump(mode="json")), ready)
    judge.refuse()
    if isinstance(spec, CurationSpec):
        return AdmittedSpec(ready, spec, spec.name, spec.output_root, tuple(judge.uploads))
    return AdmittedSpec(ready, spec, _name_training(spec), storage.absolute(spec.output), tuple(judge.uploads))


class _Judge:
    """Looks at every text once, notes what is refused, and writes what it decides into the mapping to run."""

    def __init__(
        self, settings: Settings, places: Places, job_output: str, find_upload: Callable[[str], Path | None]
    ) -> None:
        self._settings, self._places = settings, places
        self._job_output, self._find_upload = job_output, find_upload
        self._judged: set[tuple[Keys, str]] = set()
        self._faults: list[dict[str, str]] = []
        self.uploads: list[str] = []

    def look(self, texts: Iterable[Found], content: dict[str, Any]) -> None:
        """Judge every text that has not been judged; `content` takes what is decided."""
        for found in list(texts):
            key = (found.path, repr(found.value))
            if key in self._judged:
                continue
            self._judged.add(key)
            try:
                for path, value in self._judge(found):
                    _put(content, path, value)
                    self._judged.add((path, repr(value)))
            except Refused as refusal:
                self._faults.append({"path": found.label, "message": hide_secrets(str(refusal))})
            except TooWide as error:  # at once: the next pattern would take as long again
                faults = [{"path": found.label, "message": hide_secrets(str(error))}]
                raise Problem(422, "too_wide", _summary(faults), errors=faults) from error

    def refuse(self) -> None:
        """Raise Problem 403 if anything was refused."""
        if self._faults:
            raise Problem(403, "not_allowed", _summary(self._faults), errors=self._faults[:_MOST_ERRORS])

    def _judge(self, found: Found) -> list[tuple[Keys, Any]]:
        """Refuse, or return what to write where."""
        settings, places, value = self._settings, self._places, found.value
        match found.meaning:
            case "text":
                if found.path[-1] == "name" and len(found.path) > 1:  # a data set's configuration
                    check_label(value)
            case "revision":
                pass  # judged with what it is of
            case "files":
                return self._read_files(found)
            case "data_set":
                return _revision_of(found, check_data_set(found.beside, places, settings.allow_datasets))
            case "data_files":
                check_data_file(value, found.beside.get("path"), places)
            case "curated":
                check_folder(value, places)
            case "output":
                check_output(value, places, given=value == self._job_output)
            case "reference":
                check_reference(value, places, given=value == self._job_output)
            case "model":
                revision = text_or_none(found.beside.get("revision"))
                return _revision_of(found, check_model(value, revision, places, settings.allow_models))
            case "bigram_model":
                check_bigram_model(value, places)
            case "served_model" | "tokenizer":
                return self._read_tokenizer(found)
            case "url":
                check_host(value, settings.allow_hosts)
            case "key_variable":
                if value not in settings.allow_key_variables:
                    allowed = sorted(settings.allow_key_variables) or "(none)"
                    raise Refused(f"this variable is not allowed here; name one of {allowed}, never the key itself")
            case "cluster":
                if value != _address(settings):
                    raise Refused("the service chooses the cluster; leave it out")
            case "engine_argument":
                check_engine_argument(str(found.path[-1]), value)
            case "unknown":
                raise Refused("the service does not know what this text opens; leave it out")
        return []

    def _read_files(self, found: Found) -> list[tuple[Keys, Any]]:
        if not found.value.startswith("upload:"):
            self._places.check(found.value, "files")
            return []
        match = UPLOAD_URI.fullmatch(found.value)
        file = self._find_upload(match["id"]) if match else None
        if match is None or file is None or file.name != match["filename"]:
            raise Refused("there is no such upload; write upload://ID/FILENAME as POST /v1/uploads answered it")
        self.uploads.append(match["id"])
        return [(found.path, str(file))]

    def _read_tokenizer(self, found: Found) -> list[tuple[Keys, Any]]:
        """A tokenizer, or a served model, whose name is where its tokenizer is unless that is named."""
        allowed = self._settings.allow_models
        if found.meaning == "served_model":
            arguments = found.beside.get("engine_args")
            if isinstance(arguments, dict) and arguments.get("tokenizer") is not None:
                return []
            revision = text_or_none(found.beside.get("revision"))
            return _revision_of(found, check_tokenizer(found.value, revision, self._places, allowed))
        if found.path[-2] != "engine_args":  # a data set's tokenizer is always of the default branch
            if check_tokenizer(found.value, None, self._places, allowed) is not None:
                raise Refused(
                    "this hub name is pinned to a revision, which cannot be named here; leave the tokenizer out to "
                    "take the reference's own, or name a folder"
                )
            return []
        revision = check_tokenizer(found.value, text_or_none(found.above.get("revision")), self._places, allowed)
        return [((*found.path[:-2], "revision"), revision)] if revision is not None else []


def _revision_of(found: Found, revision: str | None) -> list[tuple[Keys, Any]]:
    return [] if revision is None else [((*found.path[:-1], "revision"), revision)]


def _put(content: Any, path: Keys, value: Any) -> None:
    for key in path[:-1]:
        content = content[key]
    content[path[-1]] = value


def _fill_output(content: dict[str, Any], kind: JobKind, job_output: str) -> dict[str, Any]:
    """A copy of what was sent, with the output that it leaves open."""
    ready = copy.deepcopy(content)
    if kind == "train_reference":
        if ready.get("output") is None:
            ready["output"] = job_output
    elif ready.get("output") is None:
        ready["output"] = {"kind": "parquet", "uri": job_output}
    elif isinstance(ready["output"], dict) and ready["output"].get("uri") is None:
        ready["output"]["uri"] = job_output
    return ready


def _settle_run(ready: dict[str, Any], kind: JobKind, settings: Settings) -> None:
    """Choose the cluster, and lower the number of workers to what a job may have."""
    run = ready.get("run", {})
    if not isinstance(run, dict):
        return
    most, ready["run"] = settings.max_workers_per_job, {**run, "address": _address(settings)}
    if most is not None:
        defaults = {"workers": "auto", "max_workers": most} if kind == "curate" else {"workers": 1}
        for name, default in defaults.items():
            asked = run.get(name, default)
            ready["run"][name] = min(asked, most) if isinstance(asked, int) and not isinstance(asked, bool) else asked


def _address(settings: Settings) -> str | None:
    """The cluster of every job; one that is started through Ray's Jobs API finds it in its environment."""
    return settings.ray_address if settings.launcher == "subprocess" else None


def _parse(ready: dict[str, Any], kind: JobKind) -> CurationSpec | TrainSpec:
    try:
        if kind == "curate":
            return parse_spec(ready)
        spec: TrainSpec = validate(TypeAdapter(TrainSpec), ready, "spec")
        return spec
    except SpecError as error:
        faults = _explain(str(error))
        raise Problem(422, "invalid_spec", _summary(faults), errors=faults[:_MOST_ERRORS]) from error


def _explain(message: str) -> list[dict[str, str]]:
    """The faults of a SpecError, which has a line `  path: message` for each."""
    faults = []
    for line in message.split("\n")[1:]:
        path, colon, said = line.strip().partition(": ")
        if not colon or " " in path:
            path, said = "", line.strip()
        if path.rpartition(".")[2] in ("api_key_env", "url"):
            said = said.partition(", got ")[0]
        faults.append({"path": path, "message": hide_secrets(said)})
    return faults or [{"path": "", "message": hide_secrets(message)}]


def _summary(faults: Sequence[Mapping[str, str]]) -> str:
    first = "; ".join(": ".join(filter(None, (fault["path"], fault["message"]))) for fault in faults[:3])
    return first if len(faults) <= 3 else f"{first}; and {len(faults) - 3} more"


def _name_training(spec: TrainSpec) -> str:
    """A name for a job whose spec has none: that of the model it starts from."""
    base = re.sub(r"[\x00-\x1f\x7f]", "", spec.base.rstrip("/").rpartition("/")[2])
    return f"reference from {base}"[:_LONGEST_NAME]
