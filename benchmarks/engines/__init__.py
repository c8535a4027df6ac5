"""What `benchmarks/scoring.py` measures, each in a process of its own: `child.py` starts one of the modules beside it.

An engine is a function `start(job)` that loads a model and returns `variants(documents)`: named calls that score these
documents in one of the engine's ways, each giving log-probs (T,) per document, or None where it gives none.
"""
