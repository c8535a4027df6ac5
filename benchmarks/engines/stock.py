"""vLLM used directly, with the settings that suit scoring best: `prompt_logprobs`, and prefill without scores."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np


def read(output: Any, ids: np.ndarray) -> np.ndarray:
    """Log-probs of one prompt; entry 0 has none."""
    found = [entry[token].logprob for entry, token in zip(output.prompt_logprobs[1:], ids[1:].tolist(), strict=True)]
    return np.array([np.nan, *found], np.float32)


def start(job: dict[str, Any]) -> Callable[..., Any]:
    """`options`: engine arguments of vLLM, beside those that every scorer would set."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    os.environ["VLLM_PLUGINS"] = ""  # vLLM as it comes
    import torch
    from vllm import LLM, SamplingParams

    torch.set_num_threads(job["threads"])
    engine = LLM(
        model=job["model"], dtype=job["dtype"], max_model_len=8192, skip_tokenizer_init=True,
        enable_prefix_caching=False, disable_log_stats=True, **job["options"],
    )  # fmt: skip
    scoring = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False, flat_logprobs=True, temperature=0)
    prefill = SamplingParams(max_tokens=1, detokenize=False, temperature=0)

    def generate(documents: list[np.ndarray], parameters: Any) -> list[Any]:
        prompts = [{"prompt_token_ids": ids.tolist()} for ids in documents]
        outputs: list[Any] = engine.generate(prompts, parameters, use_tqdm=False)
        return outputs

    def variants(documents: list[np.ndarray]) -> dict[str, Callable[[], Any]]:
        return {
            "prompt_logprobs": lambda: [
                read(one, ids) for one, ids in zip(generate(documents, scoring), documents, strict=True)
            ],
            "prefill only": lambda: [None for _ in generate(documents, prefill)],
        }

    return variants
