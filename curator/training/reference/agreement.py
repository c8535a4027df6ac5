"""Whether the processes of one training see the same files, on whatever machines they are.

Places in a spec are names: on another machine there may be other data, another base, or an empty disk. Processes that
train on different files would wait for each other without end, or average what does not belong together. What one of
them finds is compared with what the main one found, so all come to the same verdict, and none waits.
This module imports torch; import it only to train.
"""

from collections.abc import Mapping

from curator.errors import OutputError, TrainingError
from curator.training.reference import distributed
from curator.training.reference.staging import Staging


def check_alike(digests: Mapping[str, str]) -> None:
    """Compare what was read; `digests` says what by name. Raises TrainingError where machines read something else."""
    for what, digest in digests.items():
        others = distributed.count_differing(digest)
        if others:
            raise TrainingError(
                f"{others} of {distributed.processes()} processes read another {what} than the main one, from the same "
                "place in the spec; put it on storage that all machines share, or copy it to all"
            )


def check_shared(staging: Staging) -> None:
    """Look for the folder that the main process has taken. Raises OutputError where a machine does not see it."""
    others = distributed.count_differing(staging.mark)
    if others:
        raise OutputError(
            f"{others} of {distributed.processes()} processes do not see {str(staging.root)!r} of the main one, where "
            "they are to save and go on; name an output on storage that all machines share, by an absolute path"
        )
