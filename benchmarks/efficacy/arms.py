"""The arms: what each trains on. All start from the same base and forward equally many positions.

An arm sees packed sequences of the pool's documents, in an order that depends on the seed alone, and differs from the
others in the weights of their tokens. A document of which nothing is kept is not forwarded, as in `curator.load`.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import yaml
from learning import Loss, stored_weights
from prepare import curator
from setting import Setting

import curator as library
from curator.training import selective_loss
from curator.training.packing import pack

GOOD_SHARE = 0.1
"""Share of the sequences that come from the reference's own data, in the arms that mix it in.

All its tokens count, so its share of the loss is larger in arms that keep few of the pool's: `random10_good` is what
`excess10_good` has to be compared with. The share that it really had is in the results.
"""


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        label: in tables and plots.
        policy: of `curator select`; None = every token counts.
        good_data: whether the data that the reference was tuned on is mixed in.
        documents: keep this share of the pool's tokens, in the documents of the lowest perplexity under the reference.
        online: select in each batch by the live model's loss, at this share.
        rescored: half-way, score the pool again under the model as it is then.
        default: whether it runs without `--full`.
    """

    label: str
    policy: dict[str, Any] | None = None
    good_data: bool = False
    documents: float | None = None
    online: float | None = None
    rescored: bool = False
    default: bool = True

    @property
    def scored_models(self) -> float:
        """How many models have to score what the arm trains on; scoring again takes the base, for the second half."""
        if self.policy is not None and self.policy["kind"] == "excess_loss":
            return 2.5 if self.rescored else 2
        return 0 if self.documents is None and self.online is None else 1

    def describe(self) -> dict[str, Any]:
        """What decides an arm's result."""
        return {name: value for name, value in asdict(self).items() if name not in ("label", "default")}

    def loss(self) -> Loss:
        """What a step minimises."""
        if self.online is None:
            return stored_weights
        keep = self.online
        return lambda logits, batch: selective_loss(logits, batch["input_ids"], batch["logprobs_reference"], keep)


def _excess(keep: float, **more: Any) -> dict[str, Any]:
    return {"kind": "excess_loss", "keep": keep, **more}


def _random(keep: float) -> dict[str, Any]:
    return {"kind": "random", "keep": keep}


ARMS = {
    "all": Arm("all tokens"),
    "all_good": Arm("all tokens + good data", good_data=True),
    "random60": Arm("random 60%", _random(0.6), default=False),
    "random10": Arm("random 10%", _random(0.1), default=False),
    "random60_good": Arm("random 60% + good data", _random(0.6), good_data=True),
    "random10_good": Arm("random 10% + good data", _random(0.1), good_data=True, default=False),
    "documents60": Arm("documents of low perplexity, 60%", documents=0.6),
    "excess60": Arm("excess loss 60%", _excess(0.6)),
    "excess10": Arm("excess loss 10%", _excess(0.1)),
    "excess60_good": Arm("excess loss 60% + good data", _excess(0.6), good_data=True),
    "excess10_good": Arm("excess loss 10% + good data", _excess(0.1), good_data=True, default=False),
    "online60": Arm("online 60%", online=0.6),
    "online10": Arm("online 10%", online=0.1, default=False),
    "excess5": Arm("excess loss 5%", _excess(0.05), default=False),
    "excess20": Arm("excess loss 20%", _excess(0.2), default=False),
    "excess40": Arm("excess loss 40%", _excess(0.4), default=False),
    "excess80": Arm("excess loss 80%", _excess(0.8), default=False),
    "excess60_source": Arm("excess loss 60% of each source", _excess(0.6, scope="source"), default=False),
    "excess10_source": Arm("excess loss 10% of each source", _excess(0.1, scope="source"), default=False),
    "soft60": Arm("excess loss 60%, soft", _excess(0.6, soft={"form": "sigmoid", "temperature": 0.5}), default=False),
    "rescored60": Arm("excess loss 60%, scored again half-way", _excess(0.6), rescored=True, default=False),
    "rescored10": Arm("excess loss 10%, scored again half-way", _excess(0.1), rescored=True, default=False),
}


def dataset(setting: Setting, name: str, scored: str = "scored") -> str:
    """Folder of the data set that an arm trains on, selected from the scores if it is not there yet."""
    policy = ARMS[name].policy
    if policy is None:
        return str(setting.path(scored))
    folder = setting.path("selected", f"{scored}-{name}")
    if not (folder / "manifest.json").exists():
        folder.parent.mkdir(exist_ok=True)
        file = folder.with_suffix(".yaml")
        file.write_text(yaml.safe_dump(policy))
        curator(setting, "select", scored, "--policy", str(file), "--output", str(folder))
    return str(folder)


def sequences(setting: Setting, name: str, seed: int, scored: str = "scored") -> Iterator[dict[str, torch.Tensor]]:
    """What an arm trains on, without end."""
    arm = ARMS[name]
    own = _packed(setting, dataset(setting, name, scored), seed, _chosen(setting, arm))
    good = _packed(setting, str(setting.path("good")), seed, None)
    turns = np.random.default_rng([seed, 7])
    while True:
        from_good = arm.good_data and turns.random() < GOOD_SHARE
        sequence = next(good if from_good else own)
        taken = {name: sequence[name] for name in ("input_ids", "position_ids", "token_weights")}
        if arm.online is not None:
            taken["logprobs_reference"] = sequence["logprobs_reference"]
        yield {**taken, "from_good": torch.tensor(from_good)}


def _packed(setting: Setting, folder: str, seed: int, chosen: set[str] | None) -> Iterator[dict[str, torch.Tensor]]:
    source, epoch = library.load(folder, seed=seed, rank=0, world_size=1), 0
    while True:
        source.set_epoch(epoch)
        rows = (row for row in source if chosen is None or row["doc_id"] in chosen)
        numbered = ((number, _columns(row)) for number, row in enumerate(rows))
        for _, sequence in pack(numbered, setting.size.sequence_length):
            yield {column: torch.from_numpy(values) for column, values in sequence.items()}
        epoch += 1


def _columns(row: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in row.items() if name not in ("doc_id", "logprobs_base")}


def _chosen(setting: Setting, arm: Arm) -> set[str] | None:
    """Documents of the lowest perplexity under the reference that hold the arm's share of the tokens."""
    if arm.documents is None:
        return None
    found: list[tuple[float, str, int]] = []
    for shard in sorted(setting.path("scored", "curated").glob("*.parquet")):
        table = pq.read_table(shard, columns=["doc_id", "logprobs_reference"])
        for doc_id, logprobs in zip(table["doc_id"].to_pylist(), table["logprobs_reference"], strict=True):
            values = logprobs.values.to_numpy(zero_copy_only=False).astype(np.float32)
            if np.isfinite(values).any():
                found.append((float(-np.nanmean(values)), doc_id, len(values)))
    found.sort()
    ends = np.cumsum([length for _, _, length in found])
    return {doc_id for (_, doc_id, _), end in zip(found, ends, strict=True) if end <= arm.documents * ends[-1]}
