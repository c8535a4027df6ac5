"""The benchmarks are scripts: their folder becomes importable, as when one of them is started."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
