"""Megatron Core: its real index reader, dataset, GPT model and loss bookkeeping, on gloo.

Its schedules need CUDA, so the loop over micro-batches is written here: the loss function of `pretrain_gpt.py` (sum of
loss times mask, and the mask's sum as an integer), Megatron's own `forward_step_calc_loss` under
`calculate_per_token_loss`, and the division of all gradients by the integers' sum, as `finalize_model_grads` does.
"""

import contextlib
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import oracle
import torch
from megatron.core import parallel_state
from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.pipeline_parallel.schedules import forward_step_calc_loss
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.transformer.transformer_config import TransformerConfig

WeightedGPTDataset = oracle.load_example("train_megatron").WeightedGPTDataset

ROWS_PER_MICRO_BATCH = 4


def main() -> None:
    """Check hard masks, then soft weights, scaled until the integer sum is exact to the tolerance."""
    folder = oracle.canary_folder()
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29533", "RANK": "0", "WORLD_SIZE": "1"}
    torch.distributed.init_process_group("gloo")
    parallel_state.initialize_model_parallel()
    # Two things of the attention know only CUDA: its scratch memory, which it overwrites whole, and the random state of
    # its dropout, which is 0 here.
    parallel_state.get_global_memory_buffer().get_tensor = lambda shape, dtype, name: torch.empty(shape, dtype=dtype)
    get_cuda_rng_tracker().fork = contextlib.nullcontext
    for name, scale in (("hard", 1.0), ("soft", 2.0**16)):
        with tempfile.TemporaryDirectory() as cache:
            dataset = build_dataset(folder / "exports" / f"megatron-{name}" / "curated", cache)
            WeightedGPTDataset.weight_scale = scale
            model = build_model()
            train_step(model, dataset)
            documents = windows(dataset, oracle.read_documents(folder, name))
            title = f"Megatron Core, {name}, weight scale {scale:g}"
            oracle.check(title, model, oracle.gradients(model), documents, logits)
    torch.distributed.destroy_process_group()


def build_dataset(prefix: Path, cache: str) -> WeightedGPTDataset:
    """One epoch of all documents, as `BlendedMegatronDatasetBuilder` builds it for `--split 100,0,0`."""
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=oracle.SEQUENCE_LENGTH,
        blend=([str(prefix)], None),
        split="1,0,0",
        path_to_cache=cache,
        tokenizer=SimpleNamespace(eod=oracle.END_OF_TEXT, unique_identifiers={}, vocab_size=oracle.VOCABULARY),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
    )
    indexed = IndexedDataset(str(prefix))
    documents = np.arange(len(indexed), dtype=np.int32)
    return WeightedGPTDataset(indexed, str(prefix), documents, None, Split.train, config)


def windows(dataset: WeightedGPTDataset, documents: list[oracle.Document]) -> list[oracle.Document]:
    """The windows that Megatron cuts from the documents in its own order; the incomplete last one is left out."""
    order = [documents[index] for index in dataset.document_index.tolist()]
    ids = torch.cat([document.input_ids for document in order])
    weights = torch.cat([document.token_weights for document in order])
    cut = []
    for start in range(0, len(ids) - oracle.SEQUENCE_LENGTH, oracle.SEQUENCE_LENGTH):
        part = slice(start, start + oracle.SEQUENCE_LENGTH + 1)
        own = weights[part].clone()
        own[0] = 0
        cut.append(oracle.Document(ids[part], own))
    if len(cut) != len(dataset):
        sys.exit(f"Megatron cuts {len(dataset)} windows where {len(cut)} were expected")
    return cut


def build_model() -> GPTModel:
    """Two layers of Megatron Core's own modules, in float32."""
    config = TransformerConfig(
        num_layers=2,
        hidden_size=32,
        num_attention_heads=2,
        use_cpu_initialization=True,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        calculate_per_token_loss=True,
        init_method_std=0.2,
        pipeline_dtype=torch.float32,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
    )
    model = GPTModel(
        config,
        get_gpt_layer_local_spec(),
        vocab_size=oracle.VOCABULARY,
        max_sequence_length=oracle.SEQUENCE_LENGTH,
        position_embedding_type="learned_absolute",
    )
    return model.train()


def train_step(model: GPTModel, dataset: WeightedGPTDataset) -> None:
    """Accumulate gradients over micro-batches of the whole epoch."""
    total = torch.zeros([], dtype=torch.int)
    order = list(range(len(dataset)))
    starts = range(0, len(order), ROWS_PER_MICRO_BATCH)
    for start in starts:
        rows = [dataset[index] for index in order[start : start + ROWS_PER_MICRO_BATCH]]
        batch = torch.utils.data.default_collate(rows)
        losses = model(batch["tokens"], batch["position_ids"], batch["attention_mask"], labels=batch["labels"])
        loss, tokens = forward_step_calc_loss(
            model,
            losses,
            lambda output, mask=batch["loss_mask"]: masked_loss(mask, output),
            model.config,
            vp_stage=None,
            collect_non_loss_data=False,
            num_microbatches=len(starts),
            forward_data_store=[],
            cp_group_size=1,
            is_last_stage=True,
        )
        loss.backward()
        total += tokens
    for value in model.parameters():
        value.grad /= total


def masked_loss(loss_mask: torch.Tensor, output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, object]]:
    """What `loss_func` of `pretrain_gpt.py` computes."""
    loss = (output.view(-1).float() * loss_mask.view(-1).float()).sum()
    return loss, loss_mask.sum().to(torch.int), {}


def logits(model: GPTModel, ids: torch.Tensor) -> torch.Tensor:
    """Logits of the same model without labels, with a causal mask."""
    length = ids.shape[1]
    mask = torch.ones(1, 1, length, length).tril() < 0.5
    positions = torch.arange(length)[None].clamp(max=oracle.SEQUENCE_LENGTH - 1)
    return model(ids, positions, mask)


if __name__ == "__main__":
    main()
