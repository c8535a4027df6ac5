"""The plain way: a `transformers` forward, then log_softmax over all logits in float32, by batches of like length."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np


def load(model: str, dtype: str) -> Any:
    """The model as anybody would load it."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    path, options = Path(model), {"dtype": getattr(torch, dtype)}
    if path.suffix == ".gguf":
        options |= {"gguf_file": path.name, "quantization_config": GgufConfig(dequantize=True)}
        path = path.parent
    return AutoModelForCausalLM.from_pretrained(path, **options).eval()


def fixed_batches(lengths: list[int], size: int, budget: int) -> list[list[int]]:
    """Batches of at most `size` sequences, sorted by length, padding included within the budget of tokens."""
    batches: list[list[int]] = []
    for i in sorted((i for i, length in enumerate(lengths) if length >= 2), key=lambda i: -lengths[i]):
        if not batches or len(batches[-1]) == size or lengths[batches[-1][0]] * (len(batches[-1]) + 1) > budget:
            batches.append([])
        batches[-1].append(i)
    return batches


def score_batch(model: Any, batch: list[np.ndarray]) -> list[np.ndarray]:
    """Pad, mask, run the whole model, take the targets out of the log_softmax."""
    import torch

    ids = torch.zeros((len(batch), max(map(len, batch))), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(batch):
        ids[row, : len(sequence)] = torch.from_numpy(sequence.astype(np.int64))
        mask[row, : len(sequence)] = 1
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        logprobs = logits.float().log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0].numpy()
    return [np.append(np.float32(np.nan), logprobs[row, : len(sequence) - 1]) for row, sequence in enumerate(batch)]


def start(job: dict[str, Any]) -> Callable[..., Any]:
    """`options`: `batch_sizes` to try and the `budget` of tokens in a batch."""
    import torch

    torch.set_num_threads(job["threads"])
    model = load(job["model"], job["dtype"])

    def score(documents: list[np.ndarray], batches: list[list[int]]) -> list[np.ndarray]:
        scores = [np.full(len(ids), np.nan, np.float32) for ids in documents]
        for batch in batches:
            for i, one in zip(batch, score_batch(model, [documents[i] for i in batch]), strict=True):
                scores[i] = one
        return scores

    def variants(documents: list[np.ndarray]) -> dict[str, Callable[[], Any]]:
        plans: dict[str, list[list[int]]] = {}
        for size in job["options"]["batch_sizes"]:
            batches = fixed_batches([len(ids) for ids in documents], size, job["options"]["budget"])
            if batches not in plans.values():  # where the budget decides, a larger size changes nothing
                plans[f"batches of {size}"] = batches
        return {name: partial(score, documents, batches) for name, batches in plans.items()}

    return variants
