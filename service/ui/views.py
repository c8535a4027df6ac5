"""What the pages say of a job: pure functions from the store's job and its events to words, shares and rows.

Nothing here reads a corpus. Invariant: a figure that is not known is None and is shown as a dash.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from curator.inspection import Funnel
from curator.inspection.funnel import FunnelCounts
from service.store import Job
from service.ui.filters import count, duration, exact, share

STATUSES: Mapping[str, str] = {
    "queued": "Queued", "validating": "Validating", "in_progress": "In progress", "finalizing": "Finalizing",
    "completed": "Completed", "cancelling": "Cancelling", "cancelled": "Cancelled", "failed": "Failed",
}  # fmt: skip
KINDS: Mapping[str, str] = {"curate": "Curate", "train_reference": "Train a reference"}
_ICONS = {"queued": "circle", "completed": "check", "cancelled": "slash", "failed": "cross"}
_PATH = ("queued", "validating", "in_progress", "finalizing", "completed")
_RESUMABLE = ("cancelled", "failed")


@dataclass(frozen=True)
class JobView:
    """A job in the words of the pages; see the templates for what each field is for."""

    id: str
    name: str
    kind: str
    kind_label: str
    status: str
    status_label: str
    icon: str
    attempt: int
    active: bool
    terminal: bool
    can_cancel: bool
    can_resume: bool
    created_at: datetime
    took_s: float | None
    share: float | None
    now: str
    tokens: int | None
    kept_share: float | None
    workers: int | None
    error: dict[str, Any] | None
    quarantined: dict[str, int] | None


def view_job(job: Job) -> JobView:
    """What the list and the head of a job's page show."""
    progress, totals = job.progress or {}, job.totals or {}
    active = not job.terminal and job.status != "queued"
    scored = totals.get("scored_tokens")
    return JobView(
        id=job.id,
        name=job.name,
        kind=job.kind,
        kind_label=KINDS[job.kind],
        status=job.status,
        status_label=STATUSES[job.status],
        icon=_ICONS.get(job.status, "turning"),
        attempt=job.attempt,
        active=active,
        terminal=job.terminal,
        can_cancel=not job.terminal and job.status != "cancelling",
        can_resume=job.status in _RESUMABLE,
        created_at=job.created_at,
        took_s=_took_s(job),
        share=_progress_share(progress),
        now=_describe_now(job, progress) if active else _describe_end(job),
        tokens=totals.get("tokens", progress.get("tokens") if active else None),
        kept_share=totals["kept_tokens"] / scored if scored else None,
        workers=progress.get("workers") or None,
        error=job.error,
        quarantined=job.quarantined,
    )


def _took_s(job: Job) -> float | None:
    if job.started_at is None:
        return None
    return ((job.finished_at or datetime.now(UTC)) - job.started_at).total_seconds()


def _progress_share(progress: Mapping[str, Any]) -> float | None:
    """Part of the current stage that is done; by tokens, which move between shards."""
    for done, whole in (("tokens_done", "tokens"), ("shards_done", "shards")):
        if progress.get(whole):
            return min(float(progress[done]) / float(progress[whole]), 1.0)
    return None


def _describe_now(job: Job, progress: Mapping[str, Any]) -> str:
    parts = [str(progress.get("stage") or STATUSES[job.status].lower())]
    if progress.get("tokens_per_s"):
        parts.append(f"{count(progress['tokens_per_s'])} tokens/s")
    if progress.get("eta_s") is not None:
        parts.append(f"{duration(progress['eta_s'])} left")
    return " · ".join(parts)


def _describe_end(job: Job) -> str:
    if job.status == "queued":
        return "waiting for its turn"
    if job.error is not None:
        return str(job.error.get("type", "failed"))
    lost = sum((job.quarantined or {}).values())
    return f"{exact(lost)} rows quarantined" if lost else ""


def view_running(job: Job) -> dict[str, Any] | None:
    """What is being done now, and how far it is; None when nothing is."""
    progress = job.progress
    if progress is None or job.terminal or job.status == "queued":
        return None
    return {"stage": progress["stage"], "done": describe_done(progress), "share": _progress_share(progress)}


def describe_done(progress: Mapping[str, Any]) -> str:
    """How far a stage is, in tokens and shards."""
    parts = []
    if progress["tokens"]:
        parts.append(f"{count(progress['tokens_done'])} of {count(progress['tokens'])} tokens")
    if progress["shards"]:
        parts.append(f"{exact(progress['shards_done'])} of {exact(progress['shards'])} shards")
    return ", ".join(parts)


def view_figures(job: Job) -> list[dict[str, Any]]:
    """The strip of headline figures: those that mean something in the job's state."""
    progress, totals = job.progress or {}, job.totals or {}
    if job.status == "queued":
        return []
    if not job.terminal:
        return [
            _figure("Throughput", count(progress.get("tokens_per_s")), "tokens/s", "tokens_per_s"),
            _figure("Left", duration(progress.get("eta_s")), "of this stage", "eta_s"),
            _figure("So far", duration(_took_s(job)), "since it was started"),
            _figure("Workers", exact(progress.get("workers")), "at work"),
        ]
    took = _figure("Took", duration(_took_s(job)), f"attempt {job.attempt}" if job.attempt > 1 else "")
    if not totals.get("scored_tokens"):
        return [took]
    return [
        _figure("Kept", share(totals["kept_tokens"] / totals["scored_tokens"]), "of scored tokens"),
        _figure("Tokens", count(totals["tokens"]), _bytes_note(totals)),
        _figure("Documents", exact(totals["rows"]), f"{exact(totals['quarantined_rows'])} quarantined"),
        _figure("Throughput", count(_overall_rate(job)), "tokens/s, start to end"),
        took,
    ]


def _figure(label: str, value: str, note: str, live: str = "") -> dict[str, Any]:
    return {"label": label, "value": value, "note": note, "live": live}


def _bytes_note(totals: Mapping[str, Any]) -> str:
    size, tokens = totals.get("text_bytes"), totals.get("tokens")
    return f"{size / tokens:.2f} bytes a token" if size and tokens else ""


def _overall_rate(job: Job) -> float | None:
    took_s, tokens = _took_s(job), (job.totals or {}).get("tokens")
    return tokens / took_s if took_s and tokens else None


def view_stages(job: Job) -> list[dict[str, Any]]:
    """The stages with their speed; `share` is of the longest one."""
    stages = (job.progress or {}).get("stages") or []
    longest_s = max((stage.get("seconds") or 0.0 for stage in stages), default=0.0)
    rows = []
    for stage in stages:
        seconds = stage.get("seconds")
        rate = stage["tokens"] / seconds if seconds and stage["tokens"] else None
        words = {"started": "running", "finished": "done"}
        rows.append({
            **stage, "seconds": seconds, "rate": rate, "state": words.get(stage["state"], stage["state"]),
            "share": (seconds or 0.0) / longest_s if longest_s else 0.0,
        })  # fmt: skip
    return rows


def view_funnel(job: Job, funnel: Funnel | None) -> list[dict[str, Any]]:
    """Read, scored, kept, dropped, quarantined, in documents and tokens; shares are of what was read."""
    if funnel is None and not job.totals:
        return []
    documents, tokens = (funnel.documents, funnel.tokens) if funnel else _counts_of_totals(job.totals or {})
    read = documents.read, tokens.read
    unscored = tokens.read - tokens.scored - tokens.lost if job.status == "completed" else None
    weighed = funnel is None or funnel.shards.curated > 0
    kept = (documents.kept, tokens.kept) if weighed else (None, None)
    dropped = (documents.dropped, tokens.dropped) if weighed else (None, None)
    steps = [
        _step("Read", (documents.read, tokens.read), read, "fill", part=False),
        _step("Scored", (documents.scored, tokens.scored), read, "fill", part=False),
        _step("kept", kept, read, "fill"),
        _step("dropped", dropped, read, "miss", tokens.kept),
    ]
    if unscored:
        steps.append(_step("without a score", (None, unscored), read, "miss", tokens.scored))
    steps.append(_step("Quarantined", (documents.quarantined, None), read, "lost", part=False))
    if documents.lost:
        steps.append(_step("In lost shards", (documents.lost, tokens.lost), read, "lost", part=False))
    return steps


def _counts_of_totals(totals: Mapping[str, Any]) -> tuple[FunnelCounts, FunnelCounts]:
    """What the job itself knows, where its receipts cannot be read."""
    lost, empty = totals["quarantined_rows"], totals["rows_without_kept_tokens"]
    scored, kept = totals["scored_tokens"], totals["kept_tokens"]
    rows = totals["rows"]
    return (
        FunnelCounts(read=rows + lost, quarantined=lost, scored=rows, kept=rows - empty, dropped=empty),
        FunnelCounts(read=totals["tokens"], scored=scored, kept=kept, dropped=scored - kept),
    )


def _step(
    label: str,
    counts: tuple[int | None, int | None],
    read: tuple[int, int],
    colour: str,
    before: int = 0,
    *,
    part: bool = True,
) -> dict[str, Any]:
    """A row; its bar shows tokens where there are any to show, and begins behind `before` tokens."""
    shares = [None if count is None or not whole else count / whole for count, whole in zip(counts, read, strict=True)]
    drawn = shares[1] if counts[1] is not None else shares[0]
    return {
        "label": label, "documents": counts[0], "tokens": counts[1], "part": part, "colour": colour,
        "document_share": shares[0], "token_share": shares[1], "drawn": None if drawn is None else min(drawn, 1.0),
        "before": before / read[1] if read[1] else 0.0,
    }  # fmt: skip


def view_facts(job: Job) -> list[tuple[str, str]]:
    """What was asked, in the few lines that tell jobs apart."""
    facts = []
    corpus = job.spec.get("corpus")
    if isinstance(corpus, Mapping):
        facts.append(("Corpus", str(corpus.get("uri") or corpus.get("name") or corpus.get("kind"))))
    models = job.spec.get("models")
    if isinstance(models, Mapping):
        for name, model in models.items():
            facts.append(
                (f"Model {name}", " · ".join(str(model[key]) for key in ("model", "engine") if model.get(key)))
            )
    policy = job.spec.get("policy")
    if isinstance(policy, Mapping):
        shown = [str(policy.get("kind"))]
        shown += [
            f"{key} {policy[key]}" for key in ("keep", "scope", "minimum", "maximum") if policy.get(key) is not None
        ]
        facts.append(("Policy", " · ".join(shown)))
    if job.kind == "train_reference":
        facts += _training_facts(job.spec)
    return [*facts, ("Output", job.output)]


def _training_facts(spec: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = [("Base", str(spec.get("base")))]
    if spec.get("dataset") is not None:
        facts.append(("Dataset", str(spec["dataset"])))
    shown = ["low-rank adapters" if spec.get("method") == "lora" else "all weights"]
    ends = ("epochs", "max_steps", "max_minutes", "eval_every", "patience")
    shown += [f"{key} {spec[key]}" for key in ends if spec.get(key) is not None]
    return [*facts, ("Training", " · ".join(shown))]


def view_timeline(job: Job, states: Sequence[tuple[datetime, str]]) -> list[dict[str, Any]]:
    """The states of the current attempt with their moments, then those that still lie ahead."""
    entries = [
        {"status": status, "label": STATUSES[status], "at": at, "icon": "check", "future": False}
        for at, status in states
    ]
    if entries:
        entries[-1]["icon"] = _ICONS.get(job.status, "turning")
    reached = states[-1][1] if states else "queued"
    ahead = _PATH[_PATH.index(reached) + 1 :] if reached in _PATH else ("cancelled",) * (reached == "cancelling")
    return entries + [
        {"status": status, "label": STATUSES[status], "at": None, "icon": "circle", "future": True} for status in ahead
    ]
