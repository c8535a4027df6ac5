"""OLMo-core: one SGD step of its real trainer, and documents found by its real dataset."""

import copy
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import oracle
import torch
from olmo_core.data import TokenizerConfig
from olmo_core.nn.transformer import TransformerConfig
from olmo_core.optim import OptimConfig

example = oracle.load_example("train_olmo_core")


@dataclass
class SGDConfig(OptimConfig[torch.optim.SGD]):
    """Plain SGD, whose update is the gradient."""

    lr: float = oracle.LEARNING_RATE

    @classmethod
    def optimizer(cls) -> type[torch.optim.SGD]:
        """The class to build."""
        return torch.optim.SGD


def main() -> None:
    """Check documents, then the update."""
    folder = oracle.canary_folder()
    export = folder / "exports" / "olmo_core-hard"
    documents = oracle.read_documents(folder, "hard")
    tokenizer = TokenizerConfig(oracle.VOCABULARY, eos_token_id=oracle.END_OF_TEXT, pad_token_id=oracle.END_OF_TEXT)
    with tempfile.TemporaryDirectory() as scratch:
        check_documents(export, tokenizer, documents, scratch)
        config = example.dataset_config(export, oracle.SEQUENCE_LENGTH, tokenizer, documents_apart=False)
        windows = oracle.windows(documents, oracle.SEQUENCE_LENGTH)
        model = TransformerConfig.llama_like(
            d_model=32, vocab_size=oracle.VOCABULARY, n_layers=2, n_heads=2, hidden_size_multiple_of=32
        )
        trainer = example.build_trainer(
            config, model, SGDConfig(), Path(scratch) / "run", rows=len(windows), rows_per_micro_batch=1, steps=1
        )
        before = copy.deepcopy(trainer.train_module.model)
        trainer.fit()
        after = dict(trainer.train_module.model.named_parameters())
        update = {name: (old - after[name]).detach() / oracle.LEARNING_RATE for name, old in before.named_parameters()}
        oracle.check("OLMo-core, masks", before, update, windows, lambda model, ids: model(ids))


def check_documents(export: Path, tokenizer: TokenizerConfig, documents: list[oracle.Document], scratch: str) -> None:
    """Its dataset must find every document's end, by the end-of-text token."""
    config = example.dataset_config(export, oracle.SEQUENCE_LENGTH, tokenizer, documents_apart=True)
    config.work_dir = scratch
    seen = [length for row in config.build() for length in row["doc_lens"].tolist()]
    expected = [len(piece.input_ids) for piece in oracle.pieces(documents, oracle.SEQUENCE_LENGTH)]
    if seen[: len(expected)] != expected:
        sys.exit(f"OLMo-core finds documents of {seen} tokens; they have {expected}")


if __name__ == "__main__":
    main()
