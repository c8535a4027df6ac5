"""The text of the canary: every engine scores it at its start and after every shard (see `curator.stages.canary`).

It is fixed, because stored scores are of it, and small, because it is scored often.
"""

import numpy as np

from curator.data import IntArray
from curator.tokens.tokenizer import EncodedDocument, Tokenizer

CANARY_TEXT = (
    "The lighthouse keeper wrote down the weather every evening, and nobody ever read it.\n"
    "def mean(values):\n    return sum(values) / len(values)  # fails if empty\n"
    "In 1987, 3.14159 times 42 was 131.94678; on 2024-02-29 it still was.\n"
    "Être naïf à Zürich coûte 12 €. Съешь ещё булок. 你好，世界 👍\n"
)
"""About 100 tokens of a large vocabulary: prose, code, digits, other scripts; in NFC form."""


def encode_canary(tokenizer: Tokenizer) -> IntArray:
    """The canary in a tokenizer's tokens, shape (T,).

    Every tokenizer that `load_tokenizer` accepts can represent this kind of text, whatever its vocabulary's size; for
    one that cannot, T is 0 and there is no canary.
    """
    (encoded,) = tokenizer.encode([CANARY_TEXT])
    return encoded.input_ids if isinstance(encoded, EncodedDocument) else np.empty(0, np.int32)
