"""Scoring through a server: sequences in, requests of several threads, checked scores out.

Requests go out in the order of the sequences and come back as they like. One that fails for good ends the call: what is
under way is waited for and dropped, nothing further is sent.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import numpy as np

from curator.data import Feature, IntArray, TokenScores
from curator.errors import ScorerError
from curator.scorers.openai_answers import Dialect, read_answer, write_request
from curator.scorers.openai_server import Server
from curator.scorers.openai_text import TextForm

_BATCH_TOKENS, _BATCH_PROMPTS = 4096, 32  # of one pooling request: large for the network, small against a time-out


@dataclass(frozen=True)
class OpenAIScorer:
    """Log-probs from a server, several requests at a time; see `curator.data.Scorer`."""

    server: Server
    model: str
    dialect: Dialect
    features: tuple[Feature, ...]
    form: TextForm | None
    concurrency: int

    def score(self, sequences: Sequence[IntArray], on_tokens: Callable[[int], None]) -> list[TokenScores]:
        """Score sequences of shape (T,) each; the first request that fails for good ends the call.

        Raises:
            ScorerError: names the server, the model and what is wrong.
        """
        for number, ids_T in enumerate(sequences):
            if len(ids_T) and ids_T.min() < 0:
                raise ScorerError(f"sequence {number} holds token id {ids_T.min()}, which is none")
        scores = [_score_nothing(len(ids_T), self.features) for ids_T in sequences]
        on_tokens(sum(len(ids_T) for ids_T in sequences if len(ids_T) < 2))
        halt = threading.Event()
        with ThreadPoolExecutor(self.concurrency, thread_name_prefix="openai") as pool:
            groups = self._cut_groups(sequences)
            futures = {pool.submit(self._ask, [sequences[i] for i in group], group, halt): group for group in groups}
            try:
                for future in as_completed(futures):
                    for number, one in zip(futures[future], future.result(), strict=True):
                        scores[number] = one
                        on_tokens(len(one.logprobs_T))
            except BaseException:
                halt.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return scores

    def notes(self) -> dict[str, Any]:
        """How many requests had to be repeated."""
        retried = self.server.count_retries()
        return {"retried_requests": retried} if retried else {}

    def _cut_groups(self, sequences: Sequence[IntArray]) -> Iterator[list[int]]:
        """Numbers of the sequences that go into one request each, in order."""
        most = _BATCH_PROMPTS if self.dialect.protocol == "pooling" else 1
        group: list[int] = []
        tokens = 0
        for number, ids_T in enumerate(sequences):
            if len(ids_T) < 2:
                continue
            if group and (len(group) == most or tokens + len(ids_T) > _BATCH_TOKENS):
                yield group
                group, tokens = [], 0
            group.append(number)
            tokens += len(ids_T)
        if group:
            yield group

    def _ask(self, asked: list[IntArray], numbers: list[int], halt: threading.Event) -> list[TokenScores]:
        prompts: list[list[int] | str] = [
            ids_T.tolist() if self.form is None else self.form.write(ids_T, number)
            for ids_T, number in zip(asked, numbers, strict=True)
        ]
        request = write_request(self.dialect, self.model, prompts)
        content = self.server.post(self.dialect.path, request, sum(map(len, asked)), halt)
        try:
            return read_answer(self.dialect, content, asked, self.features)
        except ValueError as error:
            first = f"sequence {numbers[0]}" if len(numbers) == 1 else f"sequences {numbers[0]} to {numbers[-1]}"
            raise ScorerError(
                self.server.explain(f"gave an answer of protocol {self.dialect.name} that is no use: {error} ({first})")
            ) from None


def _score_nothing(length: int, features: tuple[Feature, ...]) -> TokenScores:
    """Scores of a sequence in which no token has context."""
    columns = {f"{name}_T": np.full(length, np.nan, np.float32) for name in features}
    return TokenScores(np.full(length, np.nan, np.float32), **columns)
