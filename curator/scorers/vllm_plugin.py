r"""A vLLM plug-in that scores tokens inside the engine: a few floats per token leave it, never a row of logits.

vLLM loads `register` through the entry point group `vllm.general_plugins` in every one of its processes. It makes each
architecture of vLLM's registry known a second time, under its name with `TokenScoring` in front: the checkpoint's own
class, with a pooler (`vllm_pooler`) that runs the checkpoint's own head over each chunk of hidden states and reduces it
at once. So

    vllm serve MODEL --runner pooling \
        --hf-overrides '{"architectures": ["TokenScoringLlamaForCausalLM", "LlamaForCausalLM"]}'

answers `/pooling` requests, task `token_classify`, with one row per token: log-prob, then entropy and rank where
`token_scores` in the overrides asks for them. Row 0 is NaN: no context.
"""

from collections.abc import Sequence
from typing import Any, Literal

from vllm.model_executor.models import ModelRegistry

PREFIX = "TokenScoring"
FEATURES_KEY = "token_scores"
HEAD_KEY = "token_scoring_head"
TASK: Literal["token_classify"] = "token_classify"


def register() -> None:
    """Make every architecture known as a token scorer; cheap, as classes are made when they are asked for."""
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    for architecture in list(ModelRegistry.get_supported_archs()):
        if architecture.startswith(PREFIX) or PREFIX + architecture in ModelRegistry.models:
            continue
        ModelRegistry.register_model(PREFIX + architecture, f"{__name__}:{PREFIX}{architecture}")
        if architecture in MODELS_CONFIG_MAP:
            MODELS_CONFIG_MAP[PREFIX + architecture] = MODELS_CONFIG_MAP[architecture]


def __getattr__(name: str) -> Any:
    """The scoring class of an architecture, such as `TokenScoringLlamaForCausalLM`: how vLLM's registry asks for it."""
    if not name.startswith(PREFIX):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from curator.scorers.vllm_pooler import make_scoring_class

    return make_scoring_class(ModelRegistry.models[name.removeprefix(PREFIX)].load_model_cls())


def as_token_scorer(config: Any, features: Sequence[str], head: str = "exact") -> Any:
    """Change a checkpoint's config so that vLLM runs it as a token scorer; for `hf_overrides`.

    The own name stays second, for what vLLM decides by it.
    """
    own = next(name for name in config.architectures if not name.startswith(PREFIX))
    config.architectures = [PREFIX + own, own]
    config.head_dtype = "model"
    setattr(config, FEATURES_KEY, list(features))
    setattr(config, HEAD_KEY, head)
    return config
