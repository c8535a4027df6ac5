"""Sending text to a server that takes no token ids: only text that its tokenizer turns into exactly these ids.

Text is the poor way: a window that begins inside a word, or text that spells a special token, has no text that would
come back as the same ids. Such a sequence is refused; nothing is scored on other tokens than the data set's.
"""

from curator.data import IntArray
from curator.errors import ScorerError


class TextForm:
    """Finds the text that stands for token ids, with the served model's own tokenizer.

    The server puts the tokenizer's own specials (a BOS) around the text, so those are left out of it.
    """

    def __init__(self, source: str, revision: str | None) -> None:
        """Load the tokenizer at `source`: a directory, a tokenizer.json, a .gguf file or a hub name.

        Raises:
            TokenizerError: there is none.
        """
        from curator.tokens.definition import build_backend, find_added_ids
        from curator.tokens.sources import find_tokenizer, parse_object

        found = find_tokenizer(source, revision)
        self._source = source
        self._backend = build_backend(parse_object(found.definition_json, found.source), found.source)
        self._before, self._after = find_added_ids(self._backend)

    def write(self, ids_T: IntArray, number: int) -> str:
        """The text that the server will turn into these ids.

        Args:
            ids_T: token ids, shape (T,).
            number: of the sequence, for the message.

        Raises:
            ScorerError: there is no such text.
        """
        ids = ids_T.tolist()
        inner = ids[len(self._before) :] if ids[: len(self._before)] == self._before else ids
        if self._after and inner[-len(self._after) :] == self._after:
            inner = inner[: -len(self._after)]
        text: str = self._backend.decode(inner, skip_special_tokens=False)
        if self._backend.encode(text).ids != ids:
            raise ScorerError(
                f"sequence {number} ({len(ids)} tokens) has no text that tokenizer {self._source!r} turns into them "
                "again; use a server that takes token ids (engine_args.send: ids), or a longer context"
            )
        return text

    def sample(self) -> IntArray:
        """Ids of a plain sentence, to try a server with."""
        import numpy as np

        return np.array(self._backend.encode("The cat sat on the mat, and then it went home to sleep.").ids, np.int32)
