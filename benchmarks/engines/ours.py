"""This project's engines, started as a worker starts them."""

from collections.abc import Callable
from typing import Any


def start(job: dict[str, Any]) -> Callable[..., Any]:
    """`options` are fields of the engine's config, such as `features` or `engine_args`."""
    from pydantic import TypeAdapter

    from curator.scorers import ScorerConfig

    fields = {"model": job["model"], "dtype": job["dtype"], **job["options"]}
    config: Any = TypeAdapter(ScorerConfig).validate_python(fields)
    scorer = config.build(config.identify(), job["threads"])

    def variants(documents: list[Any]) -> dict[str, Callable[[], Any]]:
        return {"scorer": lambda: [one.logprobs_T for one in scorer.score(documents, lambda _: None)]}

    return variants
