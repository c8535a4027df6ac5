"""Every error this library raises on purpose, in one tree.

    CuratorError
    ├── SpecError        (ValueError)    the spec is wrong: path into it, value, remedy
    ├── CorpusError      (ValueError)    the corpus cannot be read or planned as asked
    ├── TokenizerError   (ValueError)    the tokenizer cannot serve this dataset
    ├── ScorerError      (RuntimeError)  an engine cannot start or gave unusable scores
    │   └── EngineDied                       it broke while running: its process is ended, a fresh one is started
    │       └── EngineDrifted                it still runs, but its scores have changed
    ├── PolicyError      (ValueError)    a policy was given scores it cannot use
    ├── OutputError      (ValueError)    the output belongs to something else or is not a dataset
    ├── StorageError     (OSError)       a read or write failed: disk full, no permission, a damaged file
    ├── ClusterError     (RuntimeError)  Ray or one of its workers is not fit for the job
    ├── ShardError       (RuntimeError)  shards failed after all retries
    ├── Superseded       (RuntimeError)  this process has lost its job: cancelled, or taken over by another
    ├── ServerError      (RuntimeError)  the service refused or could not be reached
    └── TrainingError    (ValueError)    a loss or trainer was given data it cannot use

Each class is also the stdlib exception named beside it. All take one message, so that every error survives
pickling on its way from a worker. `retryable` says whether trying the same shard again could help.
"""


class CuratorError(Exception):
    """Base of all errors raised on purpose; the message says the problem, the value and the remedy."""

    retryable = False


class SpecError(CuratorError, ValueError):
    """The spec is wrong; the message starts with the path into it, such as `models.base.engine`."""


class CorpusError(CuratorError, ValueError):
    """The corpus cannot be read or planned as the spec asks."""


class TokenizerError(CuratorError, ValueError):
    """The tokenizer cannot serve this dataset."""


class ScorerError(CuratorError, RuntimeError):
    """An engine cannot start, or gave scores that cannot be used."""

    retryable = True


class EngineDied(ScorerError):
    """An engine broke, so that nothing it says later can be trusted; engines raise it with what they know.

    The worker's process ends with it, and the shard is scored by a fresh one.
    """


class EngineDrifted(EngineDied):
    """An engine gives other scores for the same text than it gave before."""


class PolicyError(CuratorError, ValueError):
    """A policy was given scores it cannot use."""


class OutputError(CuratorError, ValueError):
    """The output location belongs to another spec, or holds no dataset."""


class StorageError(CuratorError, OSError):
    """A read or write failed for a reason outside the data; the job can be resumed.

    Retryable unless it says otherwise: a full disk does.
    """

    retryable = True

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class ClusterError(CuratorError, RuntimeError):
    """Ray, or one of its workers, is not fit for the job."""


class ShardError(CuratorError, RuntimeError):
    """Shards failed after all retries; the job can be resumed."""


class Superseded(CuratorError, RuntimeError):
    """This process no longer owns its job: it was cancelled, or taken over; it must not write any more."""


class TrainingError(CuratorError, ValueError):
    """A loss, collator or trainer was given data it cannot use."""


class ServerError(CuratorError, RuntimeError):
    """The service refused or could not be reached; `status` and `code` are those of its answer, if there was one."""

    status: int | None = None
    code: str | None = None
