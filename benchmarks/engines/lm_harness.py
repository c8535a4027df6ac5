"""lm-evaluation-harness, hf backend, `loglikelihood_rolling`: a sum per document, as it is used for perplexities.

It takes texts; here each document's "text" is its number, and the tokenizer is replaced by a look-up of its ids, so
that it scores the same tokens as everybody and spends no time on tokenizing.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np


def start(job: dict[str, Any]) -> Callable[..., Any]:
    """`options`: the `batch_sizes` to try, and the `tokenizer`, a .gguf file, which only says what ends a text."""
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    torch.set_num_threads(job["threads"])
    file = Path(job["options"]["tokenizer"])
    model = HFLM(
        pretrained=job["model"], tokenizer=AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name),
        dtype=job["dtype"], device="cpu", max_length=8192,
    )  # fmt: skip

    def score(documents: list[np.ndarray], size: int) -> list[None]:
        model.batch_size_per_gpu = size
        model.tok_encode = lambda number, *_, **__: documents[int(number)].tolist()
        requests = [Instance("loglikelihood_rolling", {}, (str(i),), i) for i in range(len(documents))]
        model.loglikelihood_rolling(requests, disable_tqdm=True)
        return [None for _ in documents]

    def variants(documents: list[np.ndarray]) -> dict[str, Callable[[], Any]]:
        by_length = sorted(documents, key=len, reverse=True)  # it forms its batches in the order of the documents
        return {f"batches of {size}": partial(score, by_length, size) for size in job["options"]["batch_sizes"]}

    return variants
