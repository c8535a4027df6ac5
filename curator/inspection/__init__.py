"""What a person looks at in a dataset, finished or still being made, as plain values that serialise to JSON.

    preview      a few documents, token by token: weights, scores, losses
    histograms   counts by score and loss with the cut, overall and by source
    faults       quarantined rows and lost shards
    funnel       how many documents and tokens came through each step

Everything is read back from a dataset's folder and never written; only shards with receipts count, so a job can be
looked at while it runs. Nothing here reads a whole shard.
"""

from curator.inspection.faults import POSITION, Faults, read_errors
from curator.inspection.funnel import Funnel, read_funnel
from curator.inspection.histograms import Histograms, read_histograms
from curator.inspection.preview import Preview, Selection, read_preview
from curator.job import Job
from curator.plan import PLAN, read_plan
from curator.spec import parse_spec

__all__ = [
    "POSITION",
    "Faults",
    "Funnel",
    "Histograms",
    "Preview",
    "Selection",
    "open_job",
    "read_errors",
    "read_funnel",
    "read_histograms",
    "read_preview",
]


def open_job(directory: str) -> Job | None:
    """The job whose plan is frozen in a dataset's folder; None before planning has ended.

    Raises:
        CuratorError: there is a plan, and it is damaged or of another version.
    """
    plan = read_plan(directory)
    return None if plan is None else Job(parse_spec(plan.spec, PLAN), plan, directory=directory)
