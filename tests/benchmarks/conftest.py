"""The benchmarks are scripts: their folder becomes importable, as when one of them is started."""

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path += [str(BENCHMARKS), str(BENCHMARKS / "efficacy")]
