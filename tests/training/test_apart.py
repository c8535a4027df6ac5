"""Documents of a packed row never see each other: in README's loop, and with any model that `Objective` is given."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from curator.errors import TrainingError
from curator.training import Collator, Objective, objective
from curator.training.check.canary import write_canary
from curator.training.packing import pack

README = Path(__file__).parents[2] / "README.md"
SMALL = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip


def make_llama() -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL))


def make_falcon() -> Any:
    config = transformers.FalconConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    return transformers.FalconForCausalLM(config)


def make_gpt_oss() -> Any:
    config = transformers.GptOssConfig(num_local_experts=2, num_experts_per_tok=2, pad_token_id=0, **SMALL)
    return transformers.GptOssForCausalLM(config)


def make_lfm2() -> Any:
    config = transformers.Lfm2Config(layer_types=["conv", "full_attention"], **SMALL)
    return transformers.Lfm2ForCausalLM(config)


def make_mixtral() -> Any:
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(num_local_experts=4, **SMALL))


def test_a_mask_beside_packed_positions_is_refused() -> None:
    """As a collator that pads makes one, to rows that need no padding."""
    batch = packed_batch()
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    model, logits = make_llama(), []
    for first in (1, 2):
        batch["input_ids"][0, 0] = first
        logits.append(model(batch["input_ids"], batch["attention_mask"], batch["position_ids"]).logits[0, 6:])
    assert not torch.allclose(*logits, atol=1e-4), "the second document sees the first"
    with pytest.raises(TrainingError, match=r"position_ids that restart at 6 places inside .*take attention_mask out"):
        Objective().loss(model, batch)
    whole = Collator()([{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4, 5], "labels": [-100, 5]}])
    Objective().loss(model, {**whole, "position_ids": torch.tensor([[0, 1, 2], [0, 1, 0]])})


def packed_batch() -> dict[str, Tensor]:
    """Nine documents in three rows of 20 tokens, none of them cut."""
    rows = []
    for number, lengths in enumerate(((6, 5, 9), (12, 4, 4), (3, 10, 7))):
        documents = []
        for length in lengths:
            ids = torch.arange(length) * 7 % 290 + number
            weights = torch.ones(length)
            weights[0] = 0
            labels = torch.where(weights > 0, ids, -100)
            documents.append({"input_ids": ids.numpy(), "labels": labels.numpy(), "token_weights": weights.numpy()})
        rows += [dict(row) for _, row in pack(enumerate(documents), 20)]
    return Collator()(rows)


def alone(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Logits of every document forwarded by itself."""
    logits = torch.zeros(*batch["input_ids"].shape, model.config.vocab_size)
    for row, documents in enumerate(batch["document_ids"]):
        for document in documents.unique()[documents.unique() >= 0]:
            inside = documents == document
            logits[row, inside] = model(input_ids=batch["input_ids"][row, inside][None], use_cache=False).logits[0]
    return logits


def test_readmes_loop_gives_each_document_the_logits_it_has_alone(tmp_path: Path) -> None:
    write_canary(tmp_path / "canary")
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    (loop,) = [snippet for snippet in snippets if "curator.load(" in snippet]
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "canary" / "model")
    names: dict[str, Any] = {"model": model}
    with torch.no_grad():
        exec(loop.replace("OUTPUT", str(tmp_path / "canary" / "data")), names)
        batch = names["batch"]
        inside = batch["document_ids"] >= 0
        assert int(batch["document_ids"].max()) > 0, "several documents in a row"
        torch.testing.assert_close(names["logits"][inside], alone(model, batch)[inside], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [make_falcon, make_gpt_oss, make_lfm2])
def test_a_model_that_mixes_packed_documents_is_refused(make: Any) -> None:
    torch.manual_seed(0)
    model = make()
    with pytest.raises(TrainingError, match=rf"{type(model).__name__} with attention .* see each other.*whole rows"):
        Objective().loss(model, packed_batch())


def test_whole_rows_are_for_every_model() -> None:
    rows = [{"input_ids": torch.arange(5), "token_weights": torch.ones(5)}]
    assert Objective().loss(make_falcon(), Collator()(rows))[0] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [make_llama, make_mixtral])
def test_a_model_that_keeps_them_apart_is_asked_once_and_left_as_it_was(make: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = make().to(dtype).train()
    model.lm_head.eval()
    calls: list[torch.Size] = []
    model.register_forward_pre_hook(lambda _, __, taken: calls.append(taken["input_ids"].shape), with_kwargs=True)
    for _ in range(2):
        Objective().loss(model, packed_batch())[0].backward()
    assert calls == [*[(1, 12)] * 2, *[(2, 6)] * 2, (3, 20), (3, 20)]
    assert model.training and model.model.layers[0].training and not model.lm_head.training


@pytest.mark.parametrize("fused", [False, True])
def test_a_model_that_ranks_share_is_asked_below_its_wrapper(tmp_path: Path, fused: bool) -> None:
    expected, _ = Objective().loss(make_llama(), packed_batch())
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        model = torch.nn.parallel.DistributedDataParallel(make_llama())
        found, _ = Objective(fused=fused).loss(model, packed_batch())
        found.backward()
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("fused", [False, True])
def test_flash_attention_gets_packed_rows_as_one(monkeypatch: pytest.MonkeyPatch, fused: bool) -> None:
    """It tells documents by their positions only in a batch of one row."""
    model, batch = make_llama(), packed_batch()
    expected, outputs = Objective(fused=fused).loss(model, batch)
    monkeypatch.setattr(objective, "attention_of", lambda _: "flash_attention_2")
    shapes: list[torch.Size] = []
    model.register_forward_pre_hook(lambda _, __, taken: shapes.append(taken["input_ids"].shape), with_kwargs=True)
    found, joined = Objective(fused=fused).loss(model, batch)
    assert shapes == [(1, 60)] and joined.logits.shape == outputs.logits.shape
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(joined.logits, outputs.logits, rtol=1e-4, atol=1e-6)
