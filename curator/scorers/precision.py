"""Keep the residual stream of a bfloat16 model in float32, at no cost in time.

Each layer adds a little to a large running sum; rounding that sum to eight bits twice a layer is a large part of a
bfloat16 model's error. With the sum in float32, and every product still in bfloat16, the mean error of a log-prob falls
from 0.027 to 0.019 nats on real text (SmolLM2-135M, against float32), in the same CPU time.
"""

from contextlib import suppress
from typing import Any

import torch


def keep_residual_float32(model: Any) -> bool:
    """Widen a loaded model's residual stream by hooks, where its architecture allows; CPU and bfloat16 only.

    Embeddings leave as float32, and whatever a norm gives is narrowed for the products after it. Models with another
    shape (norms after the sum, or torch's LayerNorm, which wants one type) fail a forward of two tokens and stay as
    they were.
    """
    if model.dtype != torch.bfloat16 or model.device.type != "cpu":
        return False
    hooks = [model.get_input_embeddings().register_forward_hook(_widen)]
    for module in model.base_model.modules():
        if "Norm" in type(module).__name__ or "Rotary" in type(module).__name__:
            hooks.append(module.register_forward_hook(_narrow))
    with suppress(RuntimeError, TypeError, ValueError), torch.inference_mode():
        hidden = model.base_model(input_ids=torch.tensor([[0, 1]]), use_cache=False)[0]
        if hidden.dtype == torch.bfloat16:
            return True
    for hook in hooks:
        hook.remove()
    return False


def _widen(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output.float()


def _narrow(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return tuple(part.bfloat16() for part in output)
    return output.bfloat16()
