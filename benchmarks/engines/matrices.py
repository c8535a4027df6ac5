"""The best rate that any kernel reaches on the products of a model's linear layers: what no scorer can beat.

Kernels: torch's bfloat16 product; oneDNN's product of float32 values as bfloat16, with float32 results; vLLM's packed
oneDNN product; inductor's autotuned and packed one. Per layer the best counts, over several numbers of rows.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Shape = tuple[int, int]  # of a weight: inputs, outputs
HEAD_TILE = 4096


def linear_shapes(config: Any) -> dict[str, tuple[Shape, int]]:
    """Each linear layer of a Llama-like model, merged as engines merge them, and how often a token passes it."""
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    size = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    queries, keys = size * config.num_attention_heads, size * config.num_key_value_heads
    return {
        "queries, keys, values": ((hidden, queries + 2 * keys), layers),
        "attention output": ((queries, hidden), layers),
        "gate and up": ((hidden, 2 * inner), layers),
        "down": ((inner, hidden), layers),
        "head": ((hidden, config.vocab_size), 1),
    }


def limit_tokens_per_s(shapes: dict[str, tuple[Shape, int]], rates: dict[str, float]) -> float:
    """1 / (sum over layers of flops per token / rate); rates in flops per second."""
    return 1 / sum(2 * i * o * count / rates[name] for name, ((i, o), count) in shapes.items())


def multiply_torch(x: Any, weight: Any) -> Callable[[], Any]:
    import torch

    out = torch.empty(x.shape[0], weight.shape[1], dtype=x.dtype)
    return lambda: torch.mm(x, weight, out=out)


def multiply_float32(x: Any, weight: Any) -> Callable[[], Any]:
    import torch

    x, weight = x.float(), weight.float()
    out = torch.empty(x.shape[0], weight.shape[1])

    def run() -> Any:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        try:
            return torch.mm(x, weight, out=out)
        finally:
            torch.backends.mkldnn.matmul.fp32_precision = "none"

    return run


def multiply_vllm(x: Any, weight: Any) -> Callable[[], Any]:
    from vllm import _custom_ops

    handler = _custom_ops.create_onednn_mm(weight.t().contiguous().t(), 32)
    return lambda: _custom_ops.onednn_mm(handler, x, None)


def multiply_inductor(x: Any, weight: Any) -> Callable[[], Any]:
    import torch
    from torch._inductor import config

    config.freezing = True
    config.max_autotune = True
    config.max_autotune_gemm_backends = "CPP,ATEN"
    torch._dynamo.reset()
    linear = torch.nn.Linear(weight.shape[0], weight.shape[1], bias=False, dtype=x.dtype).eval().requires_grad_(False)
    linear.weight.data = weight.t().contiguous()
    compiled = torch.compile(linear)
    return lambda: compiled(x)


KERNELS = {
    "torch": multiply_torch,
    "oneDNN, float32 results": multiply_float32,
    "vLLM's oneDNN": multiply_vllm,
    "inductor, autotuned": multiply_inductor,
}


def best_seconds(run: Callable[[], Any]) -> float:
    """Shortest of at least three calls and at least 0.15 seconds of them."""
    run()
    seconds: list[float] = []
    while len(seconds) < 3 or (sum(seconds) < 0.15 and len(seconds) < 200):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def measure(shape: Shape, kernel: str, rows: list[int]) -> float:
    """Best rate in flops per second; a wide head is also tried in tiles, as caches like it."""
    import torch

    inputs, outputs = shape
    best = 0.0
    for columns in {outputs, min(outputs, HEAD_TILE)} if kernel != "inductor, autotuned" else {outputs}:
        weight = torch.randn(inputs, columns, dtype=torch.bfloat16)
        for count in rows:
            x = torch.randn(count, inputs, dtype=torch.bfloat16)
            with torch.inference_mode():
                seconds = best_seconds(KERNELS[kernel](x, weight))
            best = max(best, 2 * count * inputs * columns / seconds)
    return best


def start(job: dict[str, Any]) -> None:
    """`options`: the `kernels`, the `rows` of each product and the `seconds` after which no further one is begun."""
    import torch
    from transformers import AutoConfig

    begun = time.monotonic()
    torch.set_num_threads(job["threads"])
    path = Path(job["model"])
    config = (
        AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        if path.suffix == ".gguf"
        else AutoConfig.from_pretrained(path)
    )
    shapes = linear_shapes(config)
    rates: dict[str, dict[str, float]] = {name: {} for name in shapes}
    left_out: dict[str, str] = {}
    for kernel in job["options"]["kernels"]:
        for name, (shape, _) in sorted(shapes.items(), key=lambda item: item[0] == "head"):
            if time.monotonic() - begun > job["options"]["seconds"]:
                left_out[f"{kernel}: {name}"] = "no time left"
                continue
            try:
                rates[name][kernel] = measure(shape, kernel, job["options"]["rows"])
            except (ImportError, RuntimeError, AttributeError, OSError) as error:
                left_out[f"{kernel}: {name}"] = f"{type(error).__name__}: {str(error)[:200]}"
    best = {name: max(found.values()) for name, found in rates.items()}
    job["measured"] = {
        "flops_per_s": rates,
        "best": {name: max(found, key=found.__getitem__) for name, found in rates.items()},
        "flops_per_token": sum(2 * i * o * count for (i, o), count in shapes.values()),
        "tokens_per_s": limit_tokens_per_s(shapes, best),
        "left_out": left_out,
    }
