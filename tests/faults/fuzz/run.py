"""Fuzz one target, or all of them in turn (`all`): python run.py TARGET SECONDS FOLDER.

The target's own inputs are in targets.py; what the fuzzer finds interesting is kept in FOLDER. Ends with status 0 when
the time is up, and with the input that failed in FOLDER and a traceback when a promise was broken.
"""

import resource
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent))
with atheris.instrument_imports(include=["curator", "service", "targets"]):
    from targets import TARGETS, broken


LARGEST_STEP_MB = 300
"""What one input may take; libFuzzer has a limit too, looks once a second, and names the input of that moment."""


def peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def main() -> None:
    name, seconds, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    targets = TARGETS if name != "broken" else {"broken": (broken, [b"xxxx"])}
    chosen = list(targets) if name == "all" else [name]
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for i, target in enumerate(chosen):
        for j, seed in enumerate(targets[target][1]):
            (corpus / f"{target}-{j}").write_bytes((bytes([i]) if name == "all" else b"") + seed)

    def fuzz(data: bytes) -> None:
        before_mb = peak_mb()
        if name != "all":
            targets[name][0](data)
        elif data:
            targets[chosen[data[0] % len(chosen)]][0](data[1:])
        assert peak_mb() < before_mb + LARGEST_STEP_MB, f"{len(data)} bytes took {peak_mb() - before_mb} MB"

    limits = [
        f"-max_total_time={seconds}",
        "-max_len=8192",
        "-timeout=30",
        "-rss_limit_mb=2048",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], "-seed=7", f"-artifact_prefix={folder}/", *limits, str(corpus)], fuzz)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
