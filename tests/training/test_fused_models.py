"""Fused losses on real architectures: `hidden_instead_of_logits` against the same model's own logits, in float64."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from curator.errors import TrainingError
from curator.training import fused_weighted_cross_entropy, hidden_instead_of_logits, weighted_cross_entropy

SIZES = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "gpt2, tied": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None)
    ),
    "gemma2, soft-capped": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=0.5)),
    "granite, scaled": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=3.0)),
    "cohere, scaled": lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.3)),
}


def make(name: str = "llama") -> Any:
    torch.manual_seed(0)
    model = MODELS[name]().double().eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)  # logits so large that scale and soft-cap matter
    return model


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(40, (3, 9), generator=generator)
    weights = torch.rand(3, 9, generator=generator, dtype=torch.float64)
    return ids, weights * (torch.rand(3, 9, generator=generator) > 0.4)


def plain_step(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    ids, weights = batch()
    model.zero_grad()
    loss = weighted_cross_entropy(model(input_ids=ids).logits, ids, weights)
    loss.backward()
    return loss, gradients(model)


def fused_step(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    ids, weights = batch()
    model.zero_grad()
    with hidden_instead_of_logits(model) as head:
        hidden = model(input_ids=ids).logits
    loss = fused_weighted_cross_entropy(hidden, head, ids, weights)
    loss.backward()
    return loss, gradients(model)


def gradients(model: Any) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_step(model: Any) -> None:
    (loss, found), (expected_loss, expected) = fused_step(model), plain_step(model)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-10, atol=0)
    assert found.keys() == expected.keys() and found
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_a_step_is_the_one_over_logits(name: str) -> None:
    model = make(name)
    assert_same_step(model)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == (
        "gpt2" in name or "gem" in name or "coh" in name
    )


def test_the_model_is_itself_again_afterwards() -> None:
    model = make("gemma2, soft-capped")
    ids, _ = batch()
    before, names = model(input_ids=ids).logits, list(model.state_dict())
    with hidden_instead_of_logits(model) as head:
        assert model(input_ids=ids).logits.shape == (3, 9, 16)
        assert list(model.state_dict()) == names
        assert head.softcap == 0.5
    with pytest.raises(ZeroDivisionError), hidden_instead_of_logits(model):
        raise ZeroDivisionError
    assert torch.equal(model(input_ids=ids).logits, before)


def test_several_forwards_in_one_block() -> None:
    model, (ids, _) = make(), batch()
    with hidden_instead_of_logits(model):
        first, second = (model(input_ids=ids).logits for _ in range(2))
    assert torch.equal(first, second) and first.requires_grad


def test_adapters_train_through_the_frozen_head() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(make(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    model.double().eval()
    assert_same_step(model)
    assert all("lora" in name for name in gradients(model))


def test_an_adapter_on_the_head_itself_is_refused() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(make(), LoraConfig(r=2, target_modules=["lm_head"]))
    with pytest.raises(TrainingError, match=r"LlamaForCausalLM cannot be taken out.*not a plain linear layer"):
        fused_step(model)


class HalvedLogits(LlamaForCausalLM):
    """An architecture whose scale no configuration tells."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().forward(*args, **kwargs)
        outputs.logits = outputs.logits / 2
        return outputs


class TwoHeads(LlamaForCausalLM):
    """Multi-token prediction: the head is applied twice."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        super().forward(*args, **kwargs)
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [(HalvedLogits, r"more to its logits than scale=1\.0"), (TwoHeads, "applied its output head 2 times")],
)
def test_logits_that_are_not_what_the_head_says_are_found_out(architecture: Any, message: str) -> None:
    model = architecture(LlamaConfig(**SIZES)).double()
    with pytest.raises(TrainingError, match=message):
        fused_step(model)
    assert model(input_ids=batch()[0]).logits.shape == (3, 9, 40)


def test_something_that_is_no_language_model_is_refused() -> None:
    with (
        pytest.raises(TrainingError, match="Linear cannot be taken out"),
        hidden_instead_of_logits(torch.nn.Linear(2, 2)),
    ):
        pass


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("option", ["find_unused_parameters", "static_graph"])
@pytest.mark.usefixtures("one_process")
def test_options_of_data_parallelism_that_need_the_graph_of_logits_are_refused(option: str) -> None:
    model = torch.nn.parallel.DistributedDataParallel(make(), **{option: True})
    with pytest.raises(TrainingError, match=f"{option}=True.*ddp_{option}=False"):
        fused_step(model)
    with torch.no_grad(), hidden_instead_of_logits(model):  # no backward, nothing to go wrong
        assert model(input_ids=batch()[0]).logits.shape == (3, 9, 16)


@pytest.mark.usefixtures("one_process")
def test_plain_data_parallelism_takes_the_same_step() -> None:
    assert_same_step(torch.nn.parallel.DistributedDataParallel(make()))


def test_under_autocast_the_hidden_states_are_what_the_head_would_get() -> None:
    model, (ids, weights) = make().float(), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with hidden_instead_of_logits(model) as head:
            hidden = model(input_ids=ids).logits
        loss = fused_weighted_cross_entropy(hidden, head, ids, weights)
        logits = model(input_ids=ids).logits
    plain = weighted_cross_entropy(logits, ids, weights)
    assert logits.dtype == torch.bfloat16 and loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain, rtol=1e-2, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("warm", [False, True])
def test_a_compiled_model_around_it(warm: bool) -> None:
    model = make()
    expected_loss, expected = plain_step(model)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager")
    if warm:  # compiled for logits before the head is taken out
        plain_step(compiled)
    loss, found = fused_step(compiled)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-10, atol=0)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name.removeprefix("_orig_mod.")], rtol=1e-8, atol=1e-12)
    assert plain_step(compiled)[0].item() == pytest.approx(expected_loss.item(), rel=1e-10)
