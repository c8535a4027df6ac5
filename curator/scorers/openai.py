"""A reference model behind HTTP: `vllm serve` with this library's plug-in, or any server that gives prompt log-probs.

`identify` asks the server what it is and tries, with a few tokens, which protocol it speaks; the protocol found is part
of the identity, so that a run is never scored half in one way and half in another. A server can swap its weights
unseen: what it says of itself (name, origin) is checked whenever a worker starts, the weights are not. Only a canary
text, scored again and again, can notice that.

Invariant: every score was given by the server for exactly the token that was sent; whatever is missing is an error.
The best server, where you can choose (`features` as `token_scores`, any architecture with `TokenScoring` in front):

    vllm serve MODEL --runner pooling --hf-overrides
        '{"architectures": ["TokenScoringLlamaForCausalLM"], "head_dtype": "model", "token_scores": ["entropy"]}'
"""

from typing import TYPE_CHECKING, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from curator.data import ModelConfig, ModelIdentity, Scorer, StrictModel
from curator.errors import ScorerError
from curator.scorers.openai_answers import Dialect, ProtocolName

if TYPE_CHECKING:
    from curator.scorers.openai_server import Server
    from curator.scorers.openai_text import TextForm

_LONGEST_DEFAULT_CONTEXT = 8192


class OpenAIArguments(StrictModel):
    """What may be set for this engine alone."""

    protocol: Literal["auto"] | ProtocolName = Field(
        default="auto", description="how to ask; auto = the first of pooling, prompt_logprobs, echo that works"
    )
    send: Literal["auto", "ids", "text"] = Field(
        default="auto", description="what to send; auto = token ids, and text only where the server takes no ids"
    )
    tokenizer: str | None = Field(
        default=None, description="where the served model's tokenizer is; null = `model` is its hub name or directory"
    )
    concurrency: int = Field(default=32, ge=1, le=1024, description="requests under way at once, per worker")
    timeout_s: float = Field(default=600, gt=0, description="longest silence of the server within a request, seconds")
    retries: int = Field(default=6, ge=0, le=100, description="attempts after a request's first")
    backoff_s: float = Field(default=1, gt=0, description="wait before a retry, seconds; doubles up to 60, with jitter")
    requests_per_minute: float | None = Field(default=None, gt=0, description="limit per worker; null = none")
    tokens_per_minute: float | None = Field(default=None, gt=0, description="limit per worker; null = none")


class OpenAIModel(ModelConfig):
    """A model that a server gives log-probs of: vLLM, or another with /v1/completions."""

    has_server: ClassVar[bool] = True

    engine: Literal["openai"]
    model: str = Field(description="name under which the server has it, as listed by /v1/models")
    url: str = Field(description="address of the server, with or without /v1, such as http://host:8000")
    api_key_env: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="environment variable with the API key, set where workers run; null = the server needs none",
    )
    engine_args: OpenAIArguments = OpenAIArguments()

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        find_root(url)
        return url

    def tokenizer_source(self) -> str:
        """The place named in `engine_args.tokenizer`, else the model's own name."""
        return self.engine_args.tokenizer or self.model

    def identify(self) -> ModelIdentity:
        """Ask the server which model it has and how it gives log-probs; raises ScorerError when it cannot."""
        return self._describe(self._reach())[0]

    def build(self, identity: ModelIdentity, threads: int) -> Scorer:
        """Connect, and check that the server is still the one that was planned with."""
        from curator.scorers.openai_scorer import OpenAIScorer

        server = self._reach()
        found, dialect = self._describe(server)
        for field in ("weights_digest", "engine_version"):
            planned, now = getattr(identity, field), getattr(found, field)
            if planned != now:
                raise ScorerError(server.explain(f"has changed since the plan: {field} was {planned}, is {now}"))
        form = self._load_form() if dialect.sends == "text" else None
        return OpenAIScorer(server, self.model, dialect, self.features, form, self.engine_args.concurrency)

    def _reach(self) -> "Server":
        from curator.scorers.openai_server import Patience, Server

        args = self.engine_args
        patience = Patience(
            args.timeout_s, args.retries, args.backoff_s, args.requests_per_minute, args.tokens_per_minute
        )
        return Server(find_root(self.url), self.model, self.api_key_env, patience, args.concurrency)

    def _load_form(self) -> "TextForm":
        from curator.scorers.openai_text import TextForm

        return TextForm(self.tokenizer_source(), self.revision)

    def _describe(self, server: "Server") -> tuple[ModelIdentity, Dialect]:
        from curator.scorers.openai_probe import ask_version, find_dialect, find_served

        args = self.engine_args
        served = find_served(server, self.model)
        dialect = find_dialect(server, self.model, self.features, args.protocol, args.send, self._load_form)
        # a generating vLLM insists on room for one more token than the prompt
        longest = served.max_model_len and served.max_model_len - (dialect.protocol != "pooling")
        if self.context is None and longest is None:
            raise ScorerError(server.explain("does not say how long its context is (max_model_len); set context"))
        if self.context is not None and longest is not None and self.context > longest:
            raise ScorerError(server.explain(f"takes {longest} tokens, but context is {self.context}; lower context"))
        identity = ModelIdentity(
            id=self.model,
            revision=None,  # what the server loaded is its own affair
            weights_digest=served.digest(),
            engine="openai",
            engine_version=f"{ask_version(server, served)}, {dialect.name}",
            dtype="unknown",
            context=self.context or min(longest or _LONGEST_DEFAULT_CONTEXT, _LONGEST_DEFAULT_CONTEXT),
        )
        return identity, dialect


def find_root(url: str) -> str:
    """The address below which `/v1/...` and `/pooling` are; raises ValueError for what is no plain http(s) address."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is no address of a server; write it as http://host:8000 or https://host/v1")
    if parts.username or parts.password:
        raise ValueError(
            "the address holds a user name or password; name an environment variable in api_key_env instead"
        )
    if parts.query or parts.fragment:
        raise ValueError("the address has a part after ? or #, which may be a secret; leave it out")
    _ = parts.port  # a port that is none raises ValueError, in words
    return url.rstrip("/").removesuffix("/v1").rstrip("/")
