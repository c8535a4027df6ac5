"""Finding out what a server is and which protocol it speaks, with a few small requests."""

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from pydantic import BaseModel, ValidationError

from curator.data import Feature
from curator.errors import ScorerError
from curator.scorers.openai_answers import Dialect, ProtocolName, name_columns, read_answer, write_request
from curator.scorers.openai_server import Refusal, Server
from curator.scorers.openai_text import TextForm

_PROBE_TOKENS = 16
_GIVES: dict[ProtocolName, set[Feature]] = {"pooling": {"entropy", "rank"}, "prompt_logprobs": {"rank"}, "echo": set()}
_DIALECTS = (
    Dialect("pooling"),
    Dialect("prompt_logprobs"),
    Dialect("echo", max_tokens=0, written_ids=True),
    Dialect("echo", max_tokens=0),
    Dialect("echo"),
    Dialect("prompt_logprobs", "text"),
    Dialect("echo", "text", max_tokens=0, written_ids=True),
)
"""In order of preference. Text needs ids in the answer: nothing else shows that both tokenizers agree."""


class Served(BaseModel):
    """What /v1/models says of a model; the time of creation is that of the answer, and left out."""

    id: str
    root: str | None = None
    parent: str | None = None
    owned_by: str | None = None
    max_model_len: int | None = None

    def digest(self) -> str:
        """Sha256 in hex over what does not change from answer to answer, nor with the address."""
        facts = [self.id, self.root, self.parent, self.owned_by]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


class _ServedModels(BaseModel):
    data: list[Served]


def find_served(server: Server, model: str) -> Served:
    """What the server says of the model; raises ScorerError with what it has instead."""
    try:
        served = _ServedModels.model_validate_json(server.get("/v1/models")).data
    except ValidationError:
        raise ScorerError(server.explain("answers /v1/models with something else than a list of models")) from None
    for one in served:
        if one.id == model:
            return one
    names = ", ".join(repr(one.id) for one in served[:10]) or "nothing"
    raise ScorerError(server.explain(f"has no such model; it serves {names}: set model to one of them"))


def ask_version(server: Server, served: Served) -> str:
    """The server's name and version as far as it tells, such as `vllm 0.32.0`."""
    name = served.owned_by or "unknown server"
    try:
        found = json.loads(server.get("/version"))
    except (Refusal, ValueError):
        return name
    return f"{name} {found['version']}" if isinstance(found, dict) and "version" in found else name


def find_dialect(
    server: Server,
    model: str,
    features: tuple[Feature, ...],
    protocol: str,
    send: str,
    load_form: Callable[[], TextForm],
) -> Dialect:
    """The first way of asking that gives a probe's scores.

    Args:
        server: to ask.
        model: the name it has the model under.
        features: what must come with the log-probs.
        protocol: `auto`, or the only one to try.
        send: `auto`, or `ids` or `text` alone.
        load_form: gives the tokenizer; called when text is tried.

    Raises:
        ScorerError: none works; says for each why.
    """
    tried = [d for d in _DIALECTS if protocol in ("auto", d.protocol) and send in ("auto", d.sends)]
    able = [dialect for dialect in tried if set(features) <= _GIVES[dialect.protocol]]
    if not able:
        raise ScorerError(
            f"protocol {protocol!r} with send {send!r} cannot give {' and '.join(features) or 'scores'}: entropy comes "
            "from protocol pooling, rank from pooling or prompt_logprobs, and pooling takes ids only; change features, "
            "protocol or send"
        )
    reasons: dict[str, str] = {}
    form: TextForm | None = None
    for dialect in able:
        if dialect.sends == "text" and form is None:
            form = load_form()
        try:
            return _try_dialect(server, model, dialect, features, form)
        except (Refusal, ValueError) as error:
            reasons[dialect.name] = str(error)
    lines = "".join(f"\n  {name}: {reason}" for name, reason in reasons.items())
    wanted = " and ".join(("log-probs", *features))
    raise ScorerError(server.explain(f"gives no {wanted} of a prompt; start vLLM as the docs say. Tried:{lines}"))


def _try_dialect(
    server: Server, model: str, dialect: Dialect, features: tuple[Feature, ...], form: TextForm | None
) -> Dialect:
    """Ask for a few tokens' scores; gives the dialect, with its columns; raises Refusal or ValueError."""
    ids_T = (
        form.sample()
        if form is not None and dialect.sends == "text"
        else np.arange(1, 1 + _PROBE_TOKENS, dtype=np.int32)
    )
    prompt = form.write(ids_T, 0) if form is not None and dialect.sends == "text" else ids_T.tolist()
    request = write_request(dialect, model, [prompt])
    content = server.post(dialect.path, request, len(ids_T), threading.Event())
    if dialect.protocol == "pooling":
        dialect = replace(dialect, columns=name_columns(content, len(ids_T)))
        missing = set(features) - set(dialect.columns)
        if missing:
            raise ValueError(f"it gives {', '.join(dialect.columns)} only: serve with token_scores {list(features)}")
    read_answer(dialect, content, [ids_T], features)
    return dialect
