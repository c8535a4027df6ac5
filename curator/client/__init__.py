"""The typed client of the service: `curator.Client`. Needs the extra `client` (httpx, tenacity).

Importing `curator` does not import this folder; `curator.Client` does, when it is first used.
"""

try:
    from curator.client.client import Client as Client
except ModuleNotFoundError as error:
    if error.name not in ("httpx", "tenacity"):
        raise
    raise ModuleNotFoundError(
        f"the client needs {error.name}, which is not installed; install token-curator[client]", name=error.name
    ) from error

from curator.client.download import Download as Download
from curator.client.records import Estimate as Estimate
from curator.client.records import Identity as Identity
from curator.client.records import JobEvent as JobEvent
from curator.client.records import LogLine as LogLine
from curator.client.records import ModelEstimate as ModelEstimate
from curator.client.records import Progress as Progress
from curator.client.records import RemoteJob as RemoteJob
from curator.client.records import RemoteShard as RemoteShard
from curator.client.records import RemoteUpload as RemoteUpload
from curator.client.records import StageProgress as StageProgress
