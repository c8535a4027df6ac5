"""Train the tiny bigram model that ships in `curator/scorers/bigram_model`, or one of your own.

    python examples/build_bigram.py DIRECTORY [TEXT_FILE ...]

Without text files it reads the documentation topics that every Python installation holds (`pydoc_data.topics`).
Writes `tokenizer.json` and `counts.npz`; a spec then says `{engine: bigram, model: DIRECTORY}`.
"""

import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 1024
END = "<|endoftext|>"


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """A byte-level BPE: every byte is in its alphabet, so any text can be encoded and nothing is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def count_bigrams(tokenizer: Tokenizer, texts: list[str]) -> dict[str, np.ndarray]:
    """Counts as a sparse matrix by rows (previous token), each text ended by END; plus counts of single tokens."""
    size = tokenizer.get_vocab_size()
    end = tokenizer.token_to_id(END)
    pairs_VV = np.zeros((size, size), np.int64)
    singles_V = np.zeros(size, np.int64)
    for encoding in tokenizer.encode_batch(texts):
        ids = np.array([*encoding.ids, end])
        np.add.at(pairs_VV, (ids[:-1], ids[1:]), 1)
        np.add.at(singles_V, ids, 1)
    previous, following = np.nonzero(pairs_VV)
    return {
        "unigram": singles_V.astype(np.uint32),
        "row_sizes": np.bincount(previous, minlength=size).astype(np.uint16),
        "following": following.astype(np.uint16),
        "count": pairs_VV[previous, following].astype(np.uint32),
    }


def main(arguments: list[str]) -> None:
    """Read the texts, train, write both files."""
    folder = Path(arguments[0])
    if arguments[1:]:
        texts = [Path(name).read_text(encoding="utf-8") for name in arguments[1:]]
    else:
        from pydoc_data.topics import topics

        texts = [topics[name] for name in sorted(topics)]
    tokenizer = train_tokenizer(texts)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    np.savez_compressed(folder / "counts.npz", **count_bigrams(tokenizer, texts))
    print(f"{folder}: {tokenizer.get_vocab_size()} tokens from {sum(map(len, texts)):,} characters")


if __name__ == "__main__":
    main(sys.argv[1:])
