"""What a vLLM engine is started with for scoring, and what can be known before it starts.

Everything that decides speed or memory is derived here and can be overridden by `engine_args`: no prefix cache (scores
would depend on the order of documents), no statistics, safetensors only, and on a CPU just the key-value cache that a
few steps need. A step holds whole and partial documents up to `max_num_batched_tokens`, end to end without padding.
"""

import dataclasses
import difflib
import os
from functools import partial
from pathlib import Path
from typing import Any, Literal

from curator.data import Feature, ModelIdentity
from curator.errors import ScorerError
from curator.scorers.local import HeadPrecision

Scoring = Literal["in_engine", "prompt_logprobs"]

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
}
_BATCHED_TOKENS = {"cpu": 4096, "cuda": 16384}
LEAST_BATCHED_TOKENS = 256
_MOST_SEQUENCES = 512
_LOGIT_BYTES = 10  # of one token and one vocabulary entry: vLLM's own logits, their float32 copy and its log-softmax
_GPU_SHARE = 0.9


@dataclasses.dataclass(frozen=True)
class EngineSettings:
    """What to start: `model` is a hub name or a directory, `scoring` as resolved, `overrides` the user's."""

    model: str
    identity: ModelIdentity
    features: tuple[Feature, ...]
    head: HeadPrecision
    gpus: float
    threads: int
    scoring: Scoring
    overrides: dict[str, Any]


def choose_scoring(wanted: Literal["auto", "in_engine", "prompt_logprobs"]) -> Scoring:
    """Whether this build of vLLM can score inside the engine; raises ScorerError when that is wanted and it cannot."""
    if wanted == "prompt_logprobs":
        return "prompt_logprobs"
    prepare_environment()
    try:
        import curator.scorers.vllm_pooler  # noqa: F401
    except ImportError as error:
        if wanted == "auto":
            return "prompt_logprobs"
        raise ScorerError(
            f"this build of vLLM cannot score inside the engine ({error}); set scoring: prompt_logprobs, or install "
            "token-curator[vllm]"
        ) from error
    return "in_engine"


def check_arguments(overrides: dict[str, Any]) -> None:
    """Refuse names that vLLM's engine does not know; raises ScorerError with the nearest one."""
    if not overrides:
        return
    prepare_environment()
    from vllm.engine.arg_utils import EngineArgs

    known = {field.name for field in dataclasses.fields(EngineArgs)}
    for name in overrides:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else "see `vllm serve --help` for what there is"
            raise ScorerError(f"engine_args.{name}: vLLM has no such engine argument; {hint}")


def explain_unsupported(model: str, revision: str | None, *, on_gpu: bool) -> str | None:
    """Why vLLM cannot run a checkpoint where it is asked to, or None when it can."""
    prepare_environment()
    from vllm.model_executor.models import ModelRegistry
    from vllm.platforms import current_platform

    if on_gpu == current_platform.is_cpu():
        return f"the installed vllm runs on {current_platform.device_type}, the model asks for gpus: {int(on_gpu)}"
    architectures = _read_architectures(model, revision)
    if any(name in ModelRegistry.get_supported_archs() for name in architectures):
        return None
    return f"vllm does not know the architecture {', '.join(architectures)}"


def _read_architectures(model: str, revision: str | None) -> list[str]:
    """As named by the checkpoint; for a .gguf file, which names none, as `transformers` would load it."""
    from transformers import AutoModelForCausalLM

    config = _read_config(model, revision)
    known = AutoModelForCausalLM._model_mapping
    return list(config.architectures or []) or [
        known[type(config)].__name__ if type(config) in known else "(none named)"
    ]


def prepare_environment() -> None:
    """Quiet, and without calls to the outside; what the user has set stays."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def engine_arguments(settings: EngineSettings, batched_tokens: int | None = None) -> dict[str, Any]:
    """What vLLM's engine is started with: derived, then the user's overrides, then a halved step."""
    identity = settings.identity
    arguments: dict[str, Any] = {
        "model": settings.model,
        "revision": identity.revision,
        "dtype": identity.dtype,
        "max_model_len": identity.context,
        "skip_tokenizer_init": True,
        "load_format": "safetensors",
        "enable_prefix_caching": False,
        "disable_log_stats": True,
        "max_num_batched_tokens": _derive_batched_tokens(settings),
        "tensor_parallel_size": max(1, int(settings.gpus)),
    }
    if settings.gpus > 0:
        arguments["gpu_memory_utilization"] = _GPU_SHARE * min(1.0, settings.gpus)
    arguments |= _scoring_arguments(settings)
    arguments |= settings.overrides
    if batched_tokens is not None:
        arguments["max_num_batched_tokens"] = batched_tokens
    arguments.setdefault("max_num_seqs", min(_MOST_SEQUENCES, arguments["max_num_batched_tokens"]))
    if settings.gpus == 0 and "kv_cache_memory_bytes" not in arguments:
        arguments["kv_cache_memory_bytes"] = _derive_cache_bytes(settings, arguments)
    return arguments


def _scoring_arguments(settings: EngineSettings) -> dict[str, Any]:
    if settings.scoring == "prompt_logprobs":
        return {"hf_overrides": {"head_dtype": "model"}}
    from vllm.config import PoolerConfig

    from curator.scorers.vllm_plugin import TASK, as_token_scorer

    return {
        "runner": "pooling",
        "pooler_config": PoolerConfig(task=TASK),
        "hf_overrides": partial(as_token_scorer, features=settings.features, head=settings.head),
    }


def _derive_batched_tokens(settings: EngineSettings) -> int:
    """As many tokens in a step as pay; fewer where each brings a row of logits with it."""
    most = _BATCHED_TOKENS["cuda" if settings.gpus > 0 else "cpu"]
    if settings.scoring == "in_engine":
        return most
    row_bytes = _LOGIT_BYTES * int(_text_config(settings).vocab_size)
    return max(LEAST_BATCHED_TOKENS, min(most, _free_bytes() // 8 // row_bytes))


def _derive_cache_bytes(settings: EngineSettings, arguments: dict[str, Any]) -> int:
    """Keys and values of the sequences of one step: whole ones leave at its end, so no more than a few steps' worth."""
    config = _text_config(settings)
    heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    head_size = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    token_bytes = (
        2 * int(config.num_hidden_layers) * heads * head_size * (4 if settings.identity.dtype == "float32" else 2)
    )
    tokens = 4 * int(arguments["max_num_batched_tokens"]) + 2 * settings.identity.context
    return max(64 << 20, token_bytes * tokens)


def _text_config(settings: EngineSettings) -> Any:
    return _read_config(settings.model, settings.identity.revision).get_text_config()


def _read_config(model: str, revision: str | None) -> Any:
    from transformers import AutoConfig

    path = Path(model).expanduser()
    if path.suffix == ".gguf":
        return AutoConfig.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)  # nosec B615  # a local file
    source = path if path.exists() else model
    return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)


def _free_bytes() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
