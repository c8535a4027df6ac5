"""Drive a vLLM engine in this process: token ids in, a few floats per token out."""

import gc
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from curator.data import IntArray, TokenScores
from curator.errors import EngineDied, ScorerError
from curator.scorers.local import check_ids
from curator.scorers.memory import is_out_of_memory, keep_freed_memory
from curator.scorers.vllm_arguments import LEAST_BATCHED_TOKENS, EngineSettings, engine_arguments, prepare_environment

_QUEUED_STEPS = 4

_last: "weakref.ref[VllmScorer] | None" = None


class VllmScorer:
    """Scores token sequences with an engine in this process; see `curator.data.Scorer`."""

    def __init__(self, settings: EngineSettings) -> None:
        """Start the engine; raises ScorerError when vLLM cannot run the model."""
        self._settings = settings
        self._batched_tokens = 0
        self._notes: dict[str, Any] = {}
        self._engine: Any = None
        self._start()

    def score(self, sequences: Sequence[IntArray], on_tokens: Callable[[int], None]) -> list[TokenScores]:
        """Score sequences no longer than the context; a lack of memory halves the step and starts again."""
        check_ids(sequences, self._vocabulary)
        while True:
            try:
                return self._score_all(sequences, on_tokens)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise EngineDied(f"vLLM failed while scoring: {type(error).__name__}: {error}") from error
                self._halve(error)

    def notes(self) -> dict[str, Any]:
        """What a receipt should tell of the shard: steps halved for lack of memory, or the slower way of scoring."""
        notes, self._notes = self._notes, {}
        if self._settings.scoring == "prompt_logprobs":
            notes["scored_by"] = "vLLM's own prompt_logprobs"
        return notes

    def close(self) -> None:
        """Stop the engine and free what it holds; a second call does nothing."""
        from vllm.distributed import cleanup_dist_env_and_memory

        if self._engine is not None:
            self._engine.engine_core.shutdown()
            self._engine = None
            gc.collect()
            cleanup_dist_env_and_memory()

    def _start(self) -> None:
        settings = self._settings
        prepare_environment()
        os.environ["OMP_NUM_THREADS"] = str(settings.threads)
        import torch
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        if settings.gpus > 0 and not torch.cuda.is_available():
            raise ScorerError(
                f"model {settings.identity.id!r} asks for a GPU and torch sees none here; set gpus: 0, or install a "
                "CUDA build of vLLM"
            )
        if settings.gpus == 0:
            torch.set_num_threads(settings.threads)
            keep_freed_memory()
        _end_last_engine(self)
        arguments = engine_arguments(settings, self._batched_tokens or None)
        self._batched_tokens = arguments["max_num_batched_tokens"]
        try:
            self._engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        except (ValueError, RuntimeError, ImportError, KeyError, OSError, NotImplementedError, TypeError) as error:
            raise ScorerError(
                f"vLLM cannot run model {settings.identity.id!r}: {type(error).__name__}: {error}; engine transformers "
                "may run it"
            ) from error
        self._vocabulary = self._engine.model_config.get_vocab_size()
        self._check_plugin()

    def _check_plugin(self) -> None:
        from curator.scorers.vllm_plugin import PREFIX

        runs = self._engine.model_config.architecture
        if self._settings.scoring == "in_engine" and not runs.startswith(PREFIX):
            raise ScorerError(
                f"vLLM runs {runs} without token scoring: it did not load the plug-in of token-curator (entry point "
                "vllm.general_plugins); install token-curator again, and set no VLLM_PLUGINS that leaves it out"
            )

    def _score_all(self, sequences: Sequence[IntArray], on_tokens: Callable[[int], None]) -> list[TokenScores]:
        columns = 1 + len(self._settings.features)
        scores_TK = [np.full((len(ids_T), columns), np.nan, np.float32) for ids_T in sequences]
        for ids_T in sequences:
            if len(ids_T) < 2:
                on_tokens(len(ids_T))
        waiting = (number for number, ids_T in enumerate(sequences) if len(ids_T) >= 2)
        queued = 0
        while True:
            queued += self._queue(sequences, waiting, _QUEUED_STEPS * self._batched_tokens - queued)
            if not self._engine.has_unfinished_requests():
                break
            for output in self._engine.step():
                if output.finished:
                    number = int(output.request_id)
                    scores_TK[number][1:] = self._read(output, sequences[number])
                    queued -= len(sequences[number])
                    on_tokens(len(sequences[number]))
        return [self._unpack(one_TK) for one_TK in scores_TK]

    def _queue(self, sequences: Sequence[IntArray], waiting: Iterator[int], tokens: int) -> int:
        """Hand over sequences of `tokens` tokens, so that vLLM, whose ids are Python's, never holds a whole shard."""
        parameters = self._parameters()
        added = 0
        while added < tokens and (number := next(waiting, None)) is not None:
            prompt = {"prompt_token_ids": sequences[number].tolist()}
            self._engine.add_request(str(number), prompt, parameters)
            added += len(sequences[number])
        return added

    def _parameters(self) -> Any:
        if self._settings.scoring == "in_engine":
            from vllm import PoolingParams

            from curator.scorers.vllm_plugin import TASK

            return PoolingParams(task=TASK)
        from vllm import SamplingParams

        return SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False, temperature=0)

    def _read(self, output: Any, ids_T: IntArray) -> np.ndarray:
        """Scores (T - 1, K) of a finished request."""
        if self._settings.scoring == "in_engine":
            rows: np.ndarray = output.outputs.data.numpy()[1:]
            return rows
        found = [entry[token] for entry, token in zip(output.prompt_logprobs[1:], ids_T[1:].tolist(), strict=True)]
        columns = {"logprob": [one.logprob for one in found], "rank": [one.rank for one in found]}
        return np.array([columns["logprob"], *(columns[name] for name in self._settings.features)], np.float32).T

    def _unpack(self, scores_TK: np.ndarray) -> TokenScores:
        columns = {"logprobs": scores_TK[:, 0]}
        columns |= {name: scores_TK[:, 1 + k] for k, name in enumerate(self._settings.features)}
        return TokenScores(columns["logprobs"], columns.get("entropy"), columns.get("rank"))

    def _halve(self, error: Exception) -> None:
        """Start again with half the tokens in a step."""
        if self._batched_tokens < 2 * LEAST_BATCHED_TOKENS:
            raise ScorerError(
                f"out of memory with {self._batched_tokens} tokens in a step ({error}); set a shorter context, a "
                "smaller dtype, or fewer workers on this machine"
            ) from error
        self.close()
        self._batched_tokens //= 2
        self._notes["batched_tokens_after_out_of_memory"] = self._batched_tokens
        self._start()


def _end_last_engine(next_one: VllmScorer) -> None:
    """A process holds one engine: the process groups of torch are its own, and a late end would take the next one's."""
    global _last
    last = _last() if _last is not None else None
    if last is not None and last is not next_one:
        last.close()
    gc.collect()
    _last = weakref.ref(next_one)
