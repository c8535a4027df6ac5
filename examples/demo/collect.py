"""Gather real text that every Python installation holds: good data and a noisy corpus of eight sources.

The good data is two thirds of `pydoc_data.topics`, the language reference as pydoc shows it. The noisy corpus is what
lies around it: package descriptions, docstrings, comments, code, licences, character tables, lists of file hashes, and
the other third of the topics, which a reference trained on the first two should like best.

The same installation gives the same files, and files that would not change are not written again, so a second run of
the demo resumes. Nothing is downloaded and no module is imported for its text but `pydoc_data.topics`.
"""

import argparse
import ast
import gzip
import io
import json
import random
import sysconfig
import tokenize
from collections.abc import Callable, Iterator
from importlib.metadata import distributions
from pathlib import Path
from pydoc_data.topics import topics

Text = tuple[str, str]
"""An id and a text."""

SHORTEST, SHORT, LONG = 300, 6_000, 40_000
"""Characters of a document; the longest (about 10,000 tokens) do not fit into the model's context of 8,192."""

LIBRARY = Path(sysconfig.get_paths()["stdlib"])


def split_topics() -> tuple[list[Text], list[Text]]:
    """Good data, and what is held back."""
    shuffled = [(name, topics[name]) for name in sorted(topics)]
    random.Random(0).shuffle(shuffled)
    third = len(shuffled) // 3
    return shuffled[third:], shuffled[:third]


def list_modules(folder: str = ".") -> list[Path]:
    """Source files of the standard library that is on every machine: not its tests, not what was installed."""
    left_out = {"test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3", "turtledemo", "pydoc_data"}
    paths = (LIBRARY / folder).rglob("*.py")
    return sorted(path for path in paths if not left_out & set(path.relative_to(LIBRARY).parts))


def name_of(path: Path) -> str:
    """Name a module by its path in the library."""
    return path.relative_to(LIBRARY).as_posix()


def list_code() -> Iterator[Text]:
    """Whole modules."""
    yield from ((name_of(path), read(path)) for path in list_modules() if path.parent.name != "encodings")


def list_docstrings() -> Iterator[Text]:
    """All docstrings of a module, each under its name."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for path in list_modules():
        nodes = [node for node in ast.walk(ast.parse(read(path))) if isinstance(node, documented)]
        found = [(getattr(node, "name", name_of(path)), ast.get_docstring(node)) for node in nodes]
        yield name_of(path), "\n\n".join(f"{name}\n{text}" for name, text in found if text)


def list_comments() -> Iterator[Text]:
    """All comments of a module."""
    for path in list_modules():
        tokens = tokenize.generate_tokens(io.StringIO(read(path)).readline)
        yield name_of(path), "\n".join(token.string for token in tokens if token.type == tokenize.COMMENT)


def list_tables() -> Iterator[Text]:
    """Modules of character tables: hardly a word in them."""
    yield from ((name_of(path), read(path)) for path in list_modules("encodings"))


def list_descriptions() -> Iterator[Text]:
    """What installed packages say of themselves: markdown, badges, change logs."""
    for package in distributions():
        body = package.metadata.get("Description") or package.metadata.get_payload()
        yield package.metadata["Name"], str(body or "")


def list_licences() -> Iterator[Text]:
    """Licences of Python and of installed packages."""
    if (LIBRARY / "LICENSE.txt").is_file():
        yield "python", read(LIBRARY / "LICENSE.txt")
    for package in distributions():
        for file in package.files or []:
            path = Path(str(file.locate()))
            if file.name.upper().startswith(("LICENSE", "LICENCE", "COPYING", "NOTICE")) and ".py" not in path.suffix:
                yield str(file), read(path) if path.is_file() else ""


def list_records() -> Iterator[Text]:
    """Lists of installed files with their hashes: noise that no one would train on."""
    yield from ((package.metadata["Name"], package.read_text("RECORD") or "") for package in distributions())


def read(path: Path) -> str:
    """Read a text, whatever its encoding."""
    return path.read_text(encoding="utf-8", errors="replace")


# Source: how to list its texts, its share of the tokens, characters per token of SmolLM2 (measured), longest document.
SOURCES: dict[str, tuple[Callable[[], Iterator[Text]], float, float, int]] = {
    "package_descriptions": (list_descriptions, 0.20, 3.6, SHORT),
    "docstrings": (list_docstrings, 0.20, 3.7, SHORT),
    "topics_held_back": (lambda: iter(split_topics()[1]), 0.16, 4.2, LONG),
    "code": (list_code, 0.16, 3.8, LONG),
    "licences": (list_licences, 0.10, 4.4, SHORT),
    "comments": (list_comments, 0.08, 3.0, SHORT),
    "character_tables": (list_tables, 0.05, 2.2, SHORT),
    "package_records": (list_records, 0.05, 1.8, SHORT),
}


def sample(texts: Iterator[Text], characters: float, longest: int) -> list[Text]:
    """Choose texts in a fixed random order until they hold that many characters; equal ones once, cut at a line end."""
    distinct = {text: name for name, text in sorted(texts, reverse=True) if len(text.strip()) >= SHORTEST}
    order = sorted((name, text) for text, name in distinct.items())
    random.Random(0).shuffle(order)
    chosen: list[Text] = []
    for name, text in order:
        limit = min(longest, int(characters))
        chosen.append((name, text if len(text) <= limit else text[: text.rfind("\n", 0, limit) + 1]))
        characters -= len(chosen[-1][1])
        if characters < SHORTEST:
            break
    return [(name, text) for name, text in chosen if text.strip()]


def write(path: Path, source: str, texts: list[Text]) -> None:
    """Write gzip JSONL, unless the same is already there."""
    lines = (json.dumps({"id": f"{source}/{name}", "source": source, "text": text}) for name, text in texts)
    content = gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0)
    if not path.is_file() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    print(f"{path}: {len(texts)} documents, {sum(len(text) for _, text in texts):,} characters", flush=True)


def main() -> None:
    """Read the arguments and write all files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write good.jsonl.gz and noisy/<source>.jsonl.gz")
    parser.add_argument("--tokens", type=int, default=75_000, help="size of the noisy corpus, about")
    arguments = parser.parse_args()
    write(arguments.folder / "good.jsonl.gz", "topics", split_topics()[0])
    for source, (list_texts, share, characters_per_token, longest) in SOURCES.items():
        texts = sample(list_texts(), arguments.tokens * share * characters_per_token, longest)
        write(arguments.folder / "noisy" / f"{source}.jsonl.gz", source, texts)


if __name__ == "__main__":
    main()
