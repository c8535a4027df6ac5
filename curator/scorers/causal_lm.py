"""Run a causal language model of `transformers` over batches and score every token.

The body of the model runs without its head, cache or mask: sequences are padded on the right, which a causal model
never looks at, so no sequence sees another and the fast causal attention path is taken. `head` does the rest.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curator.data import Feature, IntArray, TokenScores
from curator.errors import ScorerError
from curator.scorers.attention import use_blocked_attention
from curator.scorers.batches import plan_batches
from curator.scorers.head import RowScores, read_head, score_rows
from curator.scorers.local import check_ids
from curator.scorers.memory import is_out_of_memory, keep_freed_memory
from curator.scorers.precision import keep_residual_float32

_BATCH_TOKENS = {"cpu": 4096, "cuda": 32768}


def load_model(
    model: str, revision: str | None, dtype: str, attn_implementation: str | None, on_gpu: bool, threads: int
) -> Any:
    """Load a checkpoint for scoring; raises ScorerError when it does not fit `transformers` or lacks weights."""
    from transformers import AutoModelForCausalLM, GgufConfig
    from transformers.utils import logging

    if on_gpu and not torch.cuda.is_available():
        raise ScorerError(
            f"model {model!r} asks for a GPU and torch sees none here; set gpus: 0, or install CUDA torch"
        )
    torch.set_num_threads(threads)
    if not on_gpu:
        keep_freed_memory()
    logging.disable_progress_bar()
    path = Path(model).expanduser()
    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "trust_remote_code": False, "output_loading_info": True}
    if path.is_file():
        options |= {"gguf_file": path.name, "quantization_config": GgufConfig(dequantize=True)}
    else:
        options |= {"use_safetensors": True, "revision": revision}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    source = path.parent if path.is_file() else path if path.exists() else model
    try:
        loaded, report = AutoModelForCausalLM.from_pretrained(source, **options)  # nosec B615  # options has the revision
    except (ValueError, KeyError, OSError, ImportError, RuntimeError) as error:
        raise ScorerError(f"transformers cannot load model {model!r}: {type(error).__name__}: {error}") from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ScorerError(
            f"model {model!r} lacks weights for {len(missing)} tensors, first {missing[0]}: not a whole model"
        )
    loaded = loaded.eval().requires_grad_(False).to("cuda" if on_gpu else "cpu")
    if attn_implementation is None:
        choose_attention(loaded)
    keep_residual_float32(loaded)
    return loaded


def choose_attention(model: Any) -> None:
    """Pick an attention where the default of `transformers` is wrong or slow.

    Gemma 2 caps its attention logits, which `sdpa` leaves out without a word.
    """
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None:
        model.set_attn_implementation("eager")
    else:
        use_blocked_attention(model)


def compile_layers(model: Any) -> None:
    """Compile each repeated layer by itself, for any length: all of them share one compilation."""
    repeated = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in repeated]
    if not layers:
        raise ScorerError(f"{type(model).__name__} names no layers that could be compiled; set compile: false")
    for layer in layers:
        layer.compile(dynamic=True)


class CausalScorer:
    """Scores token sequences with one loaded model; see `curator.data.Scorer`."""

    def __init__(
        self,
        model: Any,
        features: tuple[Feature, ...] = (),
        batch_tokens: int | None = None,
        *,
        rounded: bool = False,
        packing: bool | None = None,
    ) -> None:
        """Take a loaded causal language model.

        Raises:
            ScorerError: its head does more than is known here, or packed documents see each other.
        """
        self._model = model
        self._body = model.base_model
        self._head = replace(read_head(model), rounded=rounded)
        self._device = self._head.weight_VH.device
        self._features = features
        self._batch_tokens = batch_tokens or _BATCH_TOKENS[self._device.type]
        self._vocabulary = model.get_input_embeddings().weight.shape[0]
        self._halvings = 0
        flash = str(model.config._attn_implementation).startswith("flash_attention")
        self._packed = flash if packing is None else packing
        self._check_head()
        if self._packed and (mixes := self._explain_mixing()):
            if packing:
                raise ScorerError(f"{mixes}; set packing: false")
            self._packed = False

    def score(self, sequences: Sequence[IntArray], on_tokens: Callable[[int], None]) -> list[TokenScores]:
        """Score sequences no longer than the model's context; raises ScorerError for unusable ids or scores."""
        check_ids(sequences, self._vocabulary)
        scores = [_unscored(len(ids_T), self._features) for ids_T in sequences]
        on_tokens(sum(len(ids_T) for ids_T in sequences if len(ids_T) < 2))
        waiting = plan_batches([len(ids_T) for ids_T in sequences], self._batch_tokens, packed=self._packed)
        waiting.reverse()
        while waiting:
            batch = waiting.pop()
            try:
                rows = self._score_batch([sequences[i] for i in batch])
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                waiting += self._halve(batch, len(sequences[batch[0]]))
                continue
            _store(rows, batch, scores)
            on_tokens(sum(len(sequences[i]) for i in batch))
        return scores

    def notes(self) -> dict[str, Any]:
        """How many batches were halved after running out of memory since the last call, if any."""
        halvings, self._halvings = self._halvings, 0
        return {"batches_halved_out_of_memory": halvings} if halvings else {}

    def _score_batch(self, batch: list[IntArray]) -> RowScores:
        """Scores of all positions but each sequence's first, sequence after sequence."""
        ids_BT, starts, options = _lay_packed(batch) if self._packed else _lay_padded(batch)
        places_N = torch.cat([torch.arange(s, s + len(ids) - 1) for s, ids in zip(starts, batch, strict=True)])
        target_N = ids_BT.flatten()[places_N + 1]
        with torch.inference_mode():
            options = {name: value.to(self._device) for name, value in options.items()}
            hidden_BTH = self._body(input_ids=ids_BT.to(self._device), use_cache=False, **options)[0]
            hidden_NH = hidden_BTH.flatten(0, 1)[places_N.to(self._device)]
            del hidden_BTH
            return score_rows(self._head, hidden_NH, target_N.to(self._device), self._features)

    def _halve(self, batch: list[int], longest: int) -> list[list[int]]:
        """Two smaller batches, in the order in which they are to be popped."""
        if len(batch) == 1:
            raise ScorerError(
                f"out of memory with a single sequence of {longest} tokens; set a shorter context, a smaller dtype, or "
                "fewer workers on this machine"
            )
        self._halvings += 1
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        middle = len(batch) // 2
        return [batch[middle:], batch[:middle]]

    def _explain_mixing(self) -> str | None:
        """Compare a packed pair with its members alone: some models mix them, without a word."""
        pair = [np.arange(1, min(17, self._vocabulary), dtype=np.int32)] * 2
        together_N = self._score_batch(pair).logprobs_N
        alone_N = self._score_batch(pair[:1]).logprobs_N.repeat(2)
        tolerance = 2.0 ** (-12 if self._head.weight_VH.dtype == torch.float32 else -4) * max(1, float(-alone_N.min()))
        difference = float((together_N - alone_N).abs().max())
        if difference <= tolerance:
            return None
        return (
            f"packed documents see each other in {type(self._model).__name__}: log-probs differ by {difference:.3g} "
            f"nats from a document's alone (tolerance {tolerance:.3g})"
        )

    def _check_head(self) -> None:
        """Compare with the model's own logits once: some architectures treat them in ways not known here."""
        ids_T = np.arange(1, min(17, self._vocabulary), dtype=np.int32)
        ours_N = self._score_batch([ids_T]).logprobs_N
        ids_BT = torch.from_numpy(ids_T.astype(np.int64))[None].to(self._device)
        with torch.inference_mode():
            logits_NV = self._model(input_ids=ids_BT, use_cache=False).logits[0, :-1].float()
            theirs_N = logits_NV.log_softmax(-1).gather(1, ids_BT[0, 1:, None])[:, 0]
        exponent = -12 if self._head.weight_VH.dtype == torch.float32 else -6
        tolerance = 2.0**exponent * max(1.0, float(logits_NV.abs().max()))
        difference = float((ours_N - theirs_N).abs().max())
        if not difference <= tolerance:
            raise ScorerError(
                f"{type(self._model).__name__} does more to its logits than this engine knows: log-probs differ by "
                f"{difference:.3g} nats from its own (tolerance {tolerance:.3g}); use engine vllm, or dtype float32"
            )


_Layout = tuple[torch.Tensor, list[int], dict[str, torch.Tensor]]
"""Ids (B, T), where each sequence starts in them when they are flattened, and what else the model is told."""


def _lay_padded(batch: list[IntArray]) -> _Layout:
    """A row for each sequence, padded on the right, which a causal model never looks at."""
    width = max(map(len, batch))
    ids_BT = torch.zeros((len(batch), width), dtype=torch.int64)
    for row, ids_T in enumerate(batch):
        ids_BT[row, : len(ids_T)] = torch.from_numpy(ids_T.astype(np.int64))
    return ids_BT, [row * width for row in range(len(batch))], {}


def _lay_packed(batch: list[IntArray]) -> _Layout:
    """One row of all sequences; positions that start again at 0 tell `transformers` where they part."""
    lengths = [len(ids_T) for ids_T in batch]
    ids_BT = torch.from_numpy(np.concatenate(batch).astype(np.int64))[None]
    position_BT = torch.cat([torch.arange(length) for length in lengths])[None]
    return ids_BT, [sum(lengths[:number]) for number in range(len(batch))], {"position_ids": position_BT}


def _unscored(length: int, features: tuple[Feature, ...]) -> TokenScores:
    def nothing() -> Any:
        return np.full(length, np.nan, np.float32)

    return TokenScores(
        nothing(), nothing() if "entropy" in features else None, nothing() if "rank" in features else None
    )


def _store(rows: RowScores, batch: list[int], scores: list[TokenScores]) -> None:
    """Copy a batch's rows to their sequences; raises ScorerError naming a sequence with a score that is not finite."""
    columns = {"logprobs_T": rows.logprobs_N, "entropy_T": rows.entropy_N, "rank_T": rows.rank_N}
    for name, values in columns.items():
        if values is None:
            continue
        values_N = values.cpu().numpy()
        start = 0
        for i in batch:
            target_T = getattr(scores[i], name)
            stop = start + len(target_T) - 1
            target_T[1:] = values_N[start:stop]
            start = stop
            bad = np.flatnonzero(~np.isfinite(target_T[1:]))
            if len(bad):
                raise ScorerError(
                    f"sequence {i} got {name.removesuffix('_T')} {target_T[1 + bad[0]]} at token {1 + bad[0]}; the "
                    "model overflows or its weights are damaged: try dtype bfloat16 or float32"
                )
