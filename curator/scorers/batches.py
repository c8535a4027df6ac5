"""Which sequences run together: sorted by length, filled up to a token budget, hardly any padding.

The order depends on the lengths alone, so the same shard always runs as the same batches.
"""

from collections.abc import Sequence

MAX_PADDING = 0.03
"""Share of a batch that may be padding."""


def plan_batches(lengths: Sequence[int], batch_tokens: int, *, packed: bool = False) -> list[list[int]]:
    """Group sequences of similar length, the longest first so that a lack of memory shows at once.

    Args:
        lengths: tokens of each sequence.
        batch_tokens: most tokens of a batch, padding included; a longer sequence runs alone.
        packed: sequences lie end to end, so that none is padded and any lengths fit together.

    Returns:
        Indices into `lengths`, one list a batch. Sequences below two tokens have nothing to score and are left out.
    """
    order = sorted((i for i, length in enumerate(lengths) if length >= 2), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    real_tokens = 0
    for i in order:
        width = lengths[batches[-1][0]] if batches else 0
        padded_tokens = width * (len(batches[-1]) + 1) if batches else 0
        if packed and batches:
            padded_tokens = real_tokens + lengths[i]
        fits = batches and padded_tokens <= batch_tokens
        if fits and real_tokens + lengths[i] >= (1 - MAX_PADDING) * padded_tokens:
            batches[-1].append(i)
            real_tokens += lengths[i]
        else:
            batches.append([i])
            real_tokens = lengths[i]
    return batches
