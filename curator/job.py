"""One job while it runs: its spec, its frozen plan, and where each kind of shard lives.

Job directories are the truth; nothing here is state that could not be read back from them.
"""

from dataclasses import dataclass, field

from curator import storage
from curator.errors import OutputError
from curator.manifest import CALIBRATION, LostShard, ShardFolder, read_record
from curator.plan import Plan, ShardRef
from curator.progress import Reporter, Silent
from curator.room import Workers
from curator.selection.cuts import Cuts
from curator.spec import CurationSpec
from curator.stored import StoredRecord


class Calibration(StoredRecord):
    """What selecting needs to know of the whole corpus, frozen before the first curated shard.

    Frozen together with the shards that it was taken without, so that a resumed run cannot mix two cuts.
    """

    cuts: Cuts
    lost: tuple[LostShard, ...] = ()


@dataclass(frozen=True)
class Job:
    """A spec and its plan, with the folders that follow from them."""

    spec: CurationSpec
    plan: Plan
    reporter: Reporter = field(default_factory=Silent)
    directory: str | None = None

    @property
    def root(self) -> str:
        """The dataset's folder: the spec's output, or where the dataset was moved to."""
        return self.spec.output_root if self.directory is None else storage.absolute(self.directory)

    @property
    def tokens(self) -> ShardFolder:
        """Token shards, shared by every output with the same corpus, tokenizer and work folder."""
        return ShardFolder(root=self.spec.work_root, name=f"{self.plan.plan_key}/tokens/{self.plan.tokens_key}")

    def scores(self, name: str) -> ShardFolder:
        """One model's score shards."""
        return ShardFolder(root=self.spec.work_root, name=f"{self.plan.plan_key}/scores/{self.plan.scores_key(name)}")

    @property
    def weights_only(self) -> bool:
        """Whether row-aligned weights alone are written."""
        return self.plan.content == "weights"

    @property
    def curated(self) -> ShardFolder:
        """The published shards: whole rows, or row-aligned weights alone."""
        return ShardFolder(root=self.root, name="weights" if self.weights_only else "curated")

    def workers(self, gpus: float = 0) -> Workers:
        """What the actors of a stage take."""
        run = self.spec.run
        return Workers(count=run.workers, most=run.max_workers, cpus=run.threads_per_worker, gpus=gpus)

    def shards(self, lost: tuple[LostShard, ...] = ()) -> list[ShardRef]:
        """The plan's shards but the lost ones."""
        gone = {shard.number for shard in lost}
        return [shard for shard in self.plan.shards if shard.number not in gone]

    def clear_staging(self) -> None:
        """Remove what killed runs left; nothing that a living one is writing."""
        for root in {self.root, self.spec.work_root}:
            storage.clear_staging(root)

    def shards_given_up(self) -> list[LostShard]:
        """Shards that the frozen cuts were taken without: no attempt brings them back, as it would change all others.

        Raises:
            OutputError: there are some, and `on_bad_shard` is `fail` by now.
        """
        calibration = self.read_calibration()
        if calibration is None or not calibration.lost:
            return []
        numbers = ", ".join(f"{shard.number:05d}" for shard in calibration.lost)
        again = "another output.uri (with the same `work`, tokens and scores are used again) tries them again"
        if self.spec.on_bad_shard == "fail":
            raise OutputError(
                f"{self.root!r} has its cuts taken without shards {numbers}, which on_bad_shard: fail does not accept; "
                f"set on_bad_shard: quarantine to finish it without them; {again}"
            )
        self.reporter.say(f"the cuts were taken without shards {numbers}, which stay left out; {again}")
        return list(calibration.lost)

    def read_calibration(self) -> Calibration | None:
        """The frozen calibration, or None."""
        uri = storage.join(self.root, CALIBRATION)
        return read_record(uri, Calibration) if storage.exists(uri) else None
