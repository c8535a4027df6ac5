"""`engine: auto`: vLLM where it is installed and can run the model, else transformers.

Not an engine but a choice between two of its neighbours, the only file here that knows any. The choice is made at
planning and frozen there with its reason; workers build what was chosen.
"""

from typing import TYPE_CHECKING, Any, Literal

from curator.data import ModelIdentity, Scorer, StrictModel
from curator.scorers.local import LocalModel, installed_version

if TYPE_CHECKING:
    from curator.scorers.transformers import TransformersModel
    from curator.scorers.vllm import VllmModel


class NoArguments(StrictModel):
    """Nothing can be set for an engine that is not known yet."""


class AutoModel(LocalModel):
    """A causal language model run by the best engine that is installed."""

    engine: Literal["auto"]
    engine_args: NoArguments = NoArguments()

    def identify(self) -> ModelIdentity:
        """Choose the engine and let it identify the model; the identity says which, and why."""
        why_not = self._explain_no_vllm()
        engine = "transformers" if why_not else "vllm"
        reason = why_not or "vllm is installed and knows the architecture"
        return self._with(engine).identify().model_copy(update={"engine_reason": reason})

    def version_here(self, planned: ModelIdentity) -> str | None:
        """That of the engine that was chosen at planning."""
        return self._with(planned.engine).version_here(planned)

    def build(self, identity: ModelIdentity, threads: int) -> Scorer:
        """Start the engine that was chosen at planning."""
        return self._with(identity.engine).build(identity, threads)

    def _with(self, engine: str) -> "VllmModel | TransformersModel":
        from curator.scorers.transformers import TransformersModel
        from curator.scorers.vllm import VllmModel

        kinds: dict[str, Any] = {"vllm": VllmModel, "transformers": TransformersModel}
        fields = {name: getattr(self, name) for name in self.model_fields_set - {"engine", "engine_args"}}
        chosen: VllmModel | TransformersModel = kinds[engine](engine=engine, **fields)
        return chosen

    def _explain_no_vllm(self) -> str | None:
        if installed_version("vllm") is None:
            return "vllm is not installed"
        from curator.scorers.checkpoint import inspect_checkpoint
        from curator.scorers.vllm_arguments import explain_unsupported

        inspect_checkpoint(self.model, self.revision)
        return explain_unsupported(self.model, self.revision, on_gpu=self.gpus > 0)
