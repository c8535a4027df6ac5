"""Score hidden states inside a vLLM engine: the pooler that `vllm_plugin` gives to every architecture.

Shapes: N rows to predict, H hidden size, V vocabulary of this rank, K scores per token.
"""

from collections.abc import Set
from dataclasses import dataclass, replace
from typing import Any

import torch
from vllm.distributed import get_tp_group
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.pooler.abstract import Pooler
from vllm.model_executor.layers.pooler.common import PoolingParamsUpdate
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.tasks import PoolingTask
from vllm.v1.pool.metadata import PoolingCursor, PoolingMetadata

from curator.data import Feature
from curator.scorers.head import Head, RowScores, join_rows, score_logits, score_rows
from curator.scorers.vllm_plugin import FEATURES_KEY, HEAD_KEY, PREFIX, TASK

_LOGIT_BYTES = 64 << 20
_log = init_logger(__name__)


def make_scoring_class(base: type[Any]) -> type[Any]:
    """Derive a token scorer from any causal language model class of vLLM.

    Args:
        base: the class that runs the checkpoint when it generates.
    """

    class TokenScoring(base):
        is_pooling_model = True
        default_seq_pooling_type = "LAST"
        default_tok_pooling_type = "ALL"
        attn_type = "decoder"
        score_type = "bi-encoder"

        def __init__(self, *, vllm_config: Any, prefix: str = "", **options: Any) -> None:
            super().__init__(vllm_config=vllm_config, prefix=prefix, **options)
            config = vllm_config.model_config.hf_config
            features = tuple(getattr(config, FEATURES_KEY, None) or ())
            rounded = getattr(config, HEAD_KEY, "exact") == "rounded"
            self.pooler = ScoringPooler(RowScorer(self, features, rounded))

    TokenScoring.__name__ = TokenScoring.__qualname__ = PREFIX + base.__name__
    TokenScoring.__module__ = __name__
    return TokenScoring


@dataclass(frozen=True)
class _Chunk:
    """What one request has in this step: `rows` positions from `start` on that have a next token to predict."""

    offset: int
    start: int
    rows: int
    prompt: int
    complete: bool


class ScoringPooler(Pooler):
    """Turns the hidden states of each scheduled chunk into scores, and hands them out when a prompt is complete.

    Every position of a chunk predicts the next token of its prompt, so chunks are scored as they come. Scores are kept
    by position: a preempted prompt that is computed again overwrites them.
    """

    def __init__(self, score: "RowScorer") -> None:
        """Keep the scorer, and the model in it, out of `modules()`: every weight is registered once, with the model."""
        super().__init__()
        self._score = (score,)

    def get_supported_tasks(self) -> Set[PoolingTask]:
        """The one task that vLLM answers with a row per token and no further treatment."""
        return {TASK}

    def get_pooling_updates(self, task: PoolingTask) -> PoolingParamsUpdate:
        """Ask for the prompts' ids."""
        return PoolingParamsUpdate(requires_token_ids=True)

    def forward(self, hidden_states: torch.Tensor, pooling_metadata: PoolingMetadata) -> list[torch.Tensor | None]:
        """Score one step of the engine.

        Args:
            hidden_states: of all scheduled tokens, request after request, shape (tokens, H).
            pooling_metadata: which request each chunk belongs to, and the prompts' ids.

        Returns:
            Per request the scores (T, K) in float32 when its prompt is complete, else None.
        """
        (score,) = self._score
        chunks = _chunks(pooling_metadata.get_pooling_cursor())
        prompts = pooling_metadata.get_prompt_token_ids_cpu()
        rows_N = torch.cat([torch.arange(chunk.offset, chunk.offset + chunk.rows) for chunk in chunks])
        target_N = torch.cat([_targets(ids, chunk) for ids, chunk in zip(prompts, chunks, strict=True)])
        device = hidden_states.device
        scores_NK = score(hidden_states[rows_N.to(device)], target_N.to(device))
        outputs: list[torch.Tensor | None] = []
        first = 0
        for chunk, state in zip(chunks, pooling_metadata.pooling_states, strict=True):
            kept = state.hidden_states_cache  # vLLM's place for what a request carries from chunk to chunk
            if not kept:
                kept.append(scores_NK.new_full((chunk.prompt, scores_NK.shape[1]), torch.nan))
            kept[0][chunk.start + 1 : chunk.start + 1 + chunk.rows] = scores_NK[first : first + chunk.rows]
            first += chunk.rows
            outputs.append(kept.pop() if chunk.complete else None)
        return outputs


def _chunks(cursor: PoolingCursor) -> list[_Chunk]:
    columns = (cursor.num_scheduled_tokens_cpu, cursor.seq_lens_cpu, cursor.prompt_lens_cpu)
    chunks: list[_Chunk] = []
    offset = 0
    for scheduled, seen, prompt in zip(*(column.tolist() for column in columns), strict=True):
        complete = seen == prompt
        chunks.append(_Chunk(offset, seen - scheduled, scheduled - complete, prompt, complete))
        offset += scheduled
    return chunks


def _targets(ids: torch.Tensor, chunk: _Chunk) -> torch.Tensor:
    """Ids to predict, int64; in vLLM's trial run at start a prompt may have fewer ids than tokens: 0 stands in."""
    target_N = torch.zeros(chunk.rows, dtype=torch.int64)
    found = ids[chunk.start + 1 : chunk.start + 1 + chunk.rows]
    target_N[: len(found)] = found
    return target_N


class RowScorer:
    """Scores hidden states with the model's own head, tile by tile where that head is understood.

    What the model hands to its head is taken from its own `compute_logits`, so that whatever it does before counts.
    The first call compares with the logits that the model itself computes. Where they differ (a quantized head, an
    architecture that changes its logits afterwards), whole rows of those logits are reduced instead, some at a time.
    """

    def __init__(self, model: Any, features: tuple[Feature, ...], rounded: bool) -> None:
        """Take a model whose weights may not be loaded yet."""
        self._model = model
        self._features = features
        self._rounded = rounded
        self._in_tiles: bool | None = None

    def __call__(self, hidden_NH: torch.Tensor, target_N: torch.Tensor) -> torch.Tensor:
        """Scores of the targets, shape (N, K) float32: log-prob, then the features in their order."""
        if self._in_tiles is None:
            self._in_tiles = self._try_tiles(hidden_NH)
        score = self._score_tiles if self._in_tiles else self._score_logits
        rows = score(hidden_NH, target_N)
        return torch.stack([rows.logprobs_N, *(getattr(rows, f"{name}_N") for name in self._features)], dim=1)

    def _score_tiles(self, hidden_NH: torch.Tensor, target_N: torch.Tensor) -> RowScores:
        head, hidden_NH = self._read_head(hidden_NH)
        return score_rows(replace(head, rounded=self._rounded), hidden_NH, target_N, self._features, _find_ranks())

    def _score_logits(self, hidden_NH: torch.Tensor, target_N: torch.Tensor) -> RowScores:
        step = max(1, _LOGIT_BYTES // (4 * self._processor().org_vocab_size))
        parts: list[RowScores] = []
        for start in range(0, len(hidden_NH), step):
            part = slice(start, start + step)
            logits_NV = self._model.compute_logits(hidden_NH[part])
            if logits_NV is None:  # the first rank has gathered them, and its answer is the one that counts
                logits_NV = hidden_NH.new_zeros((len(hidden_NH[part]), self._processor().org_vocab_size))
            parts.append(score_logits(logits_NV.float(), target_N[part], self._features))
        return join_rows(parts)

    def _processor(self) -> LogitsProcessor:
        found = [module for module in self._model.modules() if isinstance(module, LogitsProcessor)]
        if len(found) != 1:
            raise NotImplementedError(f"{type(self._model).__name__} has {len(found)} logits processors, not one")
        return found[0]

    def _read_head(self, hidden_NH: torch.Tensor) -> tuple[Head, torch.Tensor]:
        """The head, and what the model hands to it for these hidden states."""
        processor = self._processor()

        def stop(layer: Any, hidden_states: torch.Tensor, embedding_bias: Any = None, *_: Any, **__: Any) -> Any:
            raise _Reached(layer, hidden_states, embedding_bias)

        processor.forward = stop
        try:
            self._model.compute_logits(hidden_NH)
        except _Reached as reached:
            layer, hidden_NH, bias_V = reached.args
            return _describe_head(processor, layer, bias_V), hidden_NH
        finally:
            del processor.forward
        raise NotImplementedError(f"{type(self._model).__name__}.compute_logits does not use its logits processor")

    def _try_tiles(self, hidden_NH: torch.Tensor) -> bool:
        """Whether tiles give what the model's own logits give; the same answer on every rank."""
        probe_NH = torch.randn(4, hidden_NH.shape[1], generator=torch.Generator().manual_seed(0))
        probe_NH = probe_NH.to(hidden_NH)
        target_N = torch.arange(4, device=hidden_NH.device)
        try:
            ours_N = self._score_tiles(probe_NH, target_N).logprobs_N
        except NotImplementedError as error:
            _log.warning("scoring whole rows of logits, which is slower: %s", error)
            return False
        logits_NV = self._model.compute_logits(probe_NH)
        wrong = torch.zeros(1)
        if logits_NV is not None:
            theirs_N = logits_NV.float().log_softmax(-1).gather(1, target_N[:, None])[:, 0]
            exponent = -12 if logits_NV.dtype == torch.float32 else -6
            tolerance = 2.0**exponent * max(1.0, float(logits_NV.abs().max()))
            wrong = (~((ours_N - theirs_N).abs().max() <= tolerance)).float().cpu()[None]
        ranks = _find_ranks()
        if ranks is not None:
            wrong = ranks.total(wrong.to(hidden_NH.device))
        if wrong.item():
            _log.warning("scoring whole rows of logits, which is slower: %s changes them", type(self._model).__name__)
        return not wrong.item()


class _Reached(Exception):
    """Carries what a model hands to its logits processor."""


def _describe_head(processor: LogitsProcessor, layer: Any, bias_V: torch.Tensor | None) -> Head:
    if not isinstance(layer.quant_method, UnquantizedEmbeddingMethod | UnquantizedLinearMethod):
        raise NotImplementedError(f"the head is quantized ({type(layer.quant_method).__name__})")
    if processor.soft_cap is not None and processor.scale != 1:
        raise NotImplementedError("the head has both a soft cap and a scale")
    first = layer.shard_indices.org_vocab_start_index
    size = max(0, min(layer.shard_indices.num_org_elements, processor.org_vocab_size - first))  # the rest is padding
    return Head(
        layer.weight[:size], None if bias_V is None else bias_V[:size], processor.scale, processor.soft_cap, first
    )


class _TensorParallelRanks:
    """The ranks that share this model's vocabulary; see `curator.scorers.head.Ranks`."""

    def total(self, values: torch.Tensor) -> torch.Tensor:
        summed: torch.Tensor = get_tp_group().all_reduce(values.contiguous())
        return summed

    def maximum(self, values: torch.Tensor) -> torch.Tensor:
        largest = values.clone()
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, group=get_tp_group().device_group)
        return largest


def _find_ranks() -> _TensorParallelRanks | None:
    return _TensorParallelRanks() if get_tp_group().world_size > 1 else None
