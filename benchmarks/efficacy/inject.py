"""Noise of five kinds in clean text, with the places where it is.

    shuffled     runs of 6 to 25 words in another order
    boilerplate  runs of 6 to 25 words from mails, manuals and documentation between the words
    numbers      wrong numbers in the solution: another number of equally many digits
    markup       HTML between the words: tags with attributes, entities, comments
    duplicated   runs of 6 to 25 words a second time, right after the first

The share is of the characters of the result, over all documents together; for numbers, of the numbers in solutions:
numbers are a tenth of the text. Every choice follows from the seed.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

KINDS = ("shuffled", "boilerplate", "numbers", "markup", "duplicated")

Part = tuple[str, bool]
"""Text, and whether it is noise."""

_WORDS = re.compile(r"\S+\s*")
_NUMBERS = re.compile(r"\d+")
_RUN = (6, 26)
_TAGS = ("div", "span", "p", "a", "li", "td", "section", "table", "ul", "button", "img", "h3")
_ATTRIBUTES = (
    'class="{}"', 'id="{}-{}"', 'style="margin:{}px;padding:{}px"', 'href="/{}/{}?ref={}"', 'data-{}="{}"',
    'onclick="{}({})"', 'width="{}" height="{}"',
)  # fmt: skip
_NAMES = ("nav", "main", "item", "content", "footer", "col", "btn", "active", "widget", "menu", "share", "card")
_ENTITIES = ("&nbsp;", "&amp;", "&lt;br/&gt;", "&#8217;", "<br/>", "<hr>", "&copy;", "&raquo;")


@dataclass(frozen=True)
class Noisy:
    """A document with noise in it.

    Attributes:
        text: the whole.
        noise: for each byte of the text's UTF-8 whether it is noise, shape (bytes,).
    """

    text: str
    noise: np.ndarray


def inject(kind: str, texts: Sequence[str], share: float, foreign: Sequence[str], seed: int = 0) -> list[Noisy]:
    """Noise of one kind in every document; `foreign` are the documents that boilerplate is cut from."""
    rng = np.random.default_rng([seed, KINDS.index(kind), round(1000 * share)])
    if kind == "numbers":
        return [_join(_wrong_numbers(text, share, rng)) for text in texts]
    if kind == "shuffled":
        return _spread(texts, share, lambda words: _shuffle(words, rng), rng, replaces=True)
    runs = [_WORDS.findall(text) for text in foreign]
    make: dict[str, Callable[[list[str]], str]] = {
        "boilerplate": lambda words: _cut(runs, rng),
        "markup": lambda words: _markup(rng),
        "duplicated": "".join,
    }
    return _spread(texts, share, make[kind], rng, replaces=False)


def _spread(
    texts: Sequence[str], share: float, make: Callable[[list[str]], str], rng: np.random.Generator, replaces: bool
) -> list[Noisy]:
    """Put what `make` returns for a run of words in its place or after it, until the share is reached.

    What one document has too much or too little, the next one evens out.
    """
    found, noise, total = [], 0, 0
    for text in texts:
        words = _WORDS.findall(text)
        parts, index, clean = [], 0, text[: len(text) - sum(map(len, words))]  # blanks before the first word
        total += len(text)
        starts = _starts(len(words), noise, total, share, len(text), replaces, rng)
        for start, stop in starts:
            run = words[start:stop]
            made = make(run)
            parts += [(clean + "".join(words[index : start if replaces else stop]), False), (made, True)]
            clean, index = "", stop
            noise += len(made)
            total += 0 if replaces else len(made)
        parts.append((clean + "".join(words[index:]), False))
        found.append(_join(parts))
    return found


def _starts(
    words: int, noise: int, total: int, share: float, length: int, replaces: bool, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Runs of words, in rising order and apart from each other, for the characters of noise that are wanting."""
    wanted = share * total - noise if replaces else (share * total - noise) / (1 - share)
    taken = np.zeros(words + 1, bool)
    runs: list[tuple[int, int]] = []
    for _ in range(200):
        if wanted <= 0:
            break
        size = int(rng.integers(*_RUN))
        start = int(rng.integers(max(1, words - size)))
        stop = min(words, start + size)
        if stop - start > 3 and not taken[max(0, start - 2) : stop + 2].any():
            runs.append((start, stop))
            taken[start:stop] = True
            wanted -= length * (stop - start) / words
    return sorted(runs)


def _shuffle(words: list[str], rng: np.random.Generator) -> str:
    """The words in another order; a word keeps its blanks, so that a line may end elsewhere."""
    order = rng.permutation(len(words))
    while (order == np.arange(len(words))).all():
        order = rng.permutation(len(words))
    return "".join(words[index] if words[index][-1:].isspace() else words[index] + " " for index in order)


def _cut(runs: list[list[str]], rng: np.random.Generator) -> str:
    """Words in a row from a foreign document."""
    words = runs[rng.integers(len(runs))]
    size = int(rng.integers(*_RUN))
    start = int(rng.integers(max(1, len(words) - size)))
    return "".join(words[start : start + size]).rstrip() + " "


def _markup(rng: np.random.Generator) -> str:
    """Two to six tags or entities."""
    return "".join(_tag(rng) for _ in range(rng.integers(2, 7))) + " "


def _tag(rng: np.random.Generator) -> str:
    def word() -> str:
        return str(rng.choice(_NAMES)) if rng.random() < 0.6 else str(rng.integers(1000))

    if rng.random() < 0.25:
        return str(rng.choice(_ENTITIES))
    tag = str(rng.choice(_TAGS))
    if rng.random() < 0.3:
        return f"</{tag}>"
    chosen = rng.choice(len(_ATTRIBUTES), size=rng.integers(1, 3), replace=False)
    attributes = [re.sub(r"\{\}", lambda _: word(), _ATTRIBUTES[index]) for index in chosen]
    return f"<{tag} {' '.join(attributes)}>"


def _wrong_numbers(text: str, share: float, rng: np.random.Generator) -> list[Part]:
    begin = text.find("Answer:")
    parts: list[Part] = [(text[:begin], False)]
    index = begin
    for match in _NUMBERS.finditer(text, begin):
        if rng.random() >= share:
            continue
        parts += [(text[index : match.start()], False), (_other_number(match.group(), rng), True)]
        index = match.end()
    return [*parts, (text[index:], False)]


def _other_number(number: str, rng: np.random.Generator) -> str:
    lowest = 10 ** (len(number) - 1) if len(number) > 1 else 0
    other = number
    while other == number:
        other = str(rng.integers(lowest, 10 ** len(number)))
    return other


def _join(parts: list[Part]) -> Noisy:
    lengths = [len(text.encode()) for text, _ in parts]
    noise = np.repeat([flag for _, flag in parts], lengths)
    return Noisy("".join(text for text, _ in parts), noise)


def label(noisy: Noisy, token_bytes: np.ndarray) -> np.ndarray:
    """For each token 1 = all its bytes are noise, 0 = none, -1 = some: those are left out.

    Args:
        noisy: the document.
        token_bytes: length of each token in bytes, shape (T,), in sum those of the text.
    """
    if token_bytes.sum() != len(noisy.noise):
        raise ValueError(f"the tokens have {token_bytes.sum()} bytes, the document {len(noisy.noise)}")
    before = np.concatenate([[0], np.cumsum(noisy.noise)])
    ends = np.cumsum(token_bytes)
    inside = before[ends] - before[ends - token_bytes]
    return np.where(inside == 0, 0, np.where(inside == token_bytes, 1, -1))


def auroc(score: np.ndarray, noise: np.ndarray) -> float:
    """Chance that a clean token scores higher than a noisy one, ties half (Mann-Whitney); both of shape (T,)."""
    _, rank, counts = np.unique(score, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2
    clean = ~noise
    n_clean, n_noise = int(clean.sum()), int(noise.sum())
    return float((middle[rank][clean].sum() - n_clean * (n_clean + 1) / 2) / (n_clean * n_noise))
