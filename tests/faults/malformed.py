"""Malformed corpora by the thousand, through the real planner and tokeniser, under a limit of memory.

    python malformed.py FOLDER SEED LINES FILES none|short|whole

Intact rows must be kept with their text, malformed ones quarantined for the right reason, files that cannot be read
refused by name. The last word says how many bombs and huge inputs come at the end. Prints one JSON line; `last` in
FOLDER names the input at which a process died. Run by test_malformed.py; the inputs are made in inputs.py.
"""

import json
import random
import resource
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
from inputs import FILES, Chance, Input, heavy, lines

from curator import parse_spec
from curator.errors import CuratorError
from curator.manifest import ShardFolder, TokenReceipt
from curator.plan import make_plan
from curator.stages.tokenize import TokenizeStage

LIMIT_BYTES = 1 << 30
"""Address space that inputs may take beyond what the process has after its imports."""


def spec_of(corpus: dict[str, Any], out: Path, tokens: int) -> Any:
    return parse_spec({
        "name": "malformed", "corpus": {key: value for key, value in corpus.items() if key != "shard_tokens"},
        "models": {"reference": {"engine": "bigram"}}, "policy": {"kind": "loss", "keep": 0.5},
        "output": {"uri": str(out)}, "shard_tokens": tokens,
    })  # fmt: skip


def run(corpus: dict[str, Any], out: Path, tokens: int) -> tuple[list[tuple[str, str]], list[Any]]:
    """Plan and tokenise: (doc_id, text) of every row kept, and all that was quarantined."""
    spec = spec_of(corpus, out, tokens)
    plan = make_plan(spec)
    folder = ShardFolder(root=str(out), name="tokens")
    stage = TokenizeStage(folder, spec, plan)
    stage.open()
    quarantined = list(plan.damage)
    for task in plan.passes():
        for receipt in stage.run(task, None, lambda tokens: None):
            assert isinstance(receipt, TokenReceipt)
            quarantined += receipt.quarantined
    kept: list[tuple[str, str]] = []
    for shard in plan.shards:
        table = pq.read_table(folder.uri(shard.number), columns=["doc_id", "text"])
        kept += zip(table["doc_id"].to_pylist(), table["text"].to_pylist(), strict=True)
    return kept, quarantined


def judge(case: Input, kept: list[tuple[str, str]], quarantined: list[Any]) -> list[str]:
    """What did not become of the input as its maker knows it must."""
    found = [f"{bad.reason} is no row and no damage: {bad}" for bad in quarantined if not bad.reason or not bad.file]
    texts, damage = [text for _, text in kept], [bad for bad in quarantined if bad.row is None]
    if case.whole:
        rows = {int(doc_id.rpartition(":")[2]): text for doc_id, text in kept if ":" in doc_id}
        reasons = {bad.row: bad.reason for bad in quarantined if bad.row is not None}
        for row, text in case.good:
            if rows.get(int(row or 0)) != text:
                found.append(f"row {row} was intact and is {reasons.get(row)} or changed")
        for row, wanted in case.bad.items():
            if wanted and reasons.get(row) not in wanted:
                found.append(f"row {row} should be {wanted} and is {reasons.get(row)}, kept {row in rows}")
            if not wanted and (row in rows) == (row in reasons):
                found.append(f"row {row} is kept and quarantined, or neither")
        if len(kept) + len(quarantined) != len(case.good) + len(case.bad):
            found.append(f"{len(kept)} kept and {len(quarantined)} quarantined of {len(case.good) + len(case.bad)}")
    elif case.damage:
        if texts != [text for _, text in case.good][: len(texts)]:
            found.append("what is kept of a cut file is no beginning of it")
        if len(texts) < len(case.good) and not damage:
            found.append(f"{len(case.good) - len(texts)} rows are gone without a word")
    elif case.good and len(texts) < len(case.good) and not quarantined:
        found.append(f"{len(case.good) - len(texts)} rows are gone without a word")
    written = iter(text for _, text in case.good)
    if case.checked and not all(text in written for text in texts):  # `in` goes on from where the last one was
        found.append("what is kept is not what was written")
    return found


def inputs(
    texts: list[str], chance: Chance, folder: Path, lines_wanted: int, files: int, bombs: str
) -> Iterator[Input]:
    for _ in range(lines_wanted // 100):
        yield lines(texts, chance, folder, 100)
    for i in range(files):
        yield FILES[i % len(FILES)](texts, chance, folder)
    if bombs != "none":
        yield from heavy(texts, folder, whole=bombs == "whole")


def peak_bytes() -> int:
    """Most resident memory since this program began; getrusage also counts what the starting process held."""
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def main() -> None:
    datasets.disable_progress_bars()
    folder, seed, lines_wanted, files, bombs = Path(sys.argv[1]), *map(int, sys.argv[2:5]), sys.argv[5]
    texts = json.loads((folder / "texts.json").read_text())
    chance, kinds, fates = random.Random(seed), Counter[str](), Counter[str]()
    complaints: list[str] = []
    reasons: Counter[str] = Counter()
    with open("/proc/self/statm") as statm:
        size = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + LIMIT_BYTES, size + LIMIT_BYTES))
    started_s, number = time.monotonic(), 0
    place = folder / "case"
    while True:
        if not number:
            source = inputs(texts, chance, place, lines_wanted, files, bombs)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        case = next(source, None)
        if case is None:
            break
        (folder / "last").write_text(f"{number}: {case.kind} (seed {seed})")
        try:
            kept, quarantined = run(case.corpus, place / "out", 4_000_000 if "bomb" in case.kind else 500)
            problems = judge(case, kept, quarantined)
            reasons.update(bad.reason for bad in quarantined)
            fates["read"] += 1
        except CuratorError as error:
            named = case.refused and any(name in str(error) for name in ("a.", "'saved/", str(place)))
            problems = [] if named else [f"refused: {error}"]
            fates["refused"] += 1
        except Exception as error:
            problems = [f"crashed: {error!r}"]
        complaints += [f"{number} {case.kind}: {problem}" for problem in problems]
        kinds[case.kind] += case.malformed
        number += 1
    print(json.dumps({
        "inputs": sum(kinds.values()), "kinds": kinds, "fates": fates, "reasons": reasons, "complaints": complaints,
        "peak_bytes": peak_bytes(),
        "seconds": round(time.monotonic() - started_s, 1),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
