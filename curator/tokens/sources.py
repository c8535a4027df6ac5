"""Finding a tokenizer and reading its definition, without running any code that lies beside it.

Four kinds of source end in the same thing, the JSON of a `tokenizers.Tokenizer`, and the names of its special tokens:
a directory, a tokenizer.json, a .gguf file and a hub name. A tokenizer.json is always preferred, as it needs no
`transformers`; `transformers` converts the rest. The network is touched for hub names alone.

Invariant: `trust_remote_code` is never set, and nothing is written but the hub's own cache.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curator.errors import TokenizerError

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.\-]*(/[A-Za-z0-9][\w.\-]*)?")
_VOCABULARY_FILES = ("vocab.json", "vocab.txt", "*.model", "*.tiktoken", "tekken.json")
_HUB_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("config.json", "generation_config.json", "merges.txt", *_VOCABULARY_FILES),
)
_ROLES = ("bos", "eos", "unk", "pad", "cls", "sep", "mask")


@dataclass(frozen=True)
class FoundTokenizer:
    """A tokenizer as its files describe it.

    Attributes:
        source: where it came from, for messages.
        definition_json: the content of a tokenizer.json.
        roles: special token by role (`bos`, `eos`, `pad`...), by content or by id, as far as the files name them.
        adds_bos: what a GGUF header says about BOS; None where the post-processor alone decides.
    """

    source: str
    definition_json: str
    roles: dict[str, str | int]
    adds_bos: bool | None = None


def find_tokenizer(source: str, revision: str | None) -> FoundTokenizer:
    """Read the tokenizer at `source`.

    Args:
        source: a directory, a tokenizer.json, a .gguf file or a hub name.
        revision: revision of a hub name; ignored for files.

    Raises:
        TokenizerError: there is no tokenizer, it cannot be read, or `tokenizers` cannot express it.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _from_directory(path, source)
    if path.is_file():
        if path.suffix == ".gguf":
            return _from_gguf(path)
        return FoundTokenizer(source, _read_text(path), _read_roles(path.parent))
    if path.suffix in (".json", ".gguf") or not _HUB_NAME.fullmatch(source):
        raise TokenizerError(
            f"tokenizer {source!r} does not exist; name a directory with tokenizer.json, a tokenizer.json, "
            "a .gguf file or a hub name such as 'org/name'"
        )
    return _from_directory(_download(source, revision), source)


def _from_directory(folder: Path, source: str) -> FoundTokenizer:
    file = folder / "tokenizer.json"
    if file.is_file():
        return FoundTokenizer(source, _read_text(file), _read_roles(folder))
    if not any(next(folder.glob(pattern), None) for pattern in _VOCABULARY_FILES):
        raise TokenizerError(
            f"no tokenizer in {source!r}: no tokenizer.json, nor one of {', '.join(_VOCABULARY_FILES)}; copy the "
            "model's tokenizer.json there, or name another place in tokens.tokenizer"
        )
    definition_json, roles = _convert(source, {"pretrained_model_name_or_path": str(folder)})
    return FoundTokenizer(source, definition_json, _read_roles(folder) or roles)


def _from_gguf(path: Path) -> FoundTokenizer:
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    definition_json, roles = _convert(str(path), where)
    return FoundTokenizer(str(path), definition_json, roles, _gguf_adds_bos(path))


def _convert(source: str, where: dict[str, str]) -> tuple[str, dict[str, str | int]]:
    """Let `transformers` turn whatever is there into the JSON of a fast tokenizer."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise TokenizerError(
            f"tokenizer {source!r} has no tokenizer.json, and converting it needs transformers: "
            "install token-curator[transformers], or name a tokenizer.json in tokens.tokenizer"
        ) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where, trust_remote_code=False, local_files_only=True)  # nosec B615  # a local folder
    except Exception as error:  # its failures are of many types: missing library, bad file, remote code asked for
        raise _no_fast_tokenizer(source, f"{type(error).__name__}: {error}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise _no_fast_tokenizer(source, f"transformers gives {type(tokenizer).__name__}, a slow one")
    tokens = {role: getattr(tokenizer, f"{role}_token", None) for role in _ROLES}
    return tokenizer.backend_tokenizer.to_str(), {role: token for role, token in tokens.items() if token}


def _no_fast_tokenizer(source: str, reason: str) -> TokenizerError:
    return TokenizerError(
        f"tokenizer {source!r} cannot be made a fast one ({reason}); name a tokenizer.json of the same vocabulary "
        "in tokens.tokenizer"
    )


def _gguf_adds_bos(path: Path) -> bool | None:
    """`tokenizer.ggml.add_bos_token`, which `transformers` does not look at."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise TokenizerError(f"reading {str(path)!r} needs gguf: install token-curator[transformers]") from error
    field = GGUFReader(str(path)).fields.get("tokenizer.ggml.add_bos_token")
    return None if field is None else bool(field.contents())


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(_HUB_FILES)))
    except Exception as error:  # offline, unknown name, no permission, bad name: each of another library's type
        at = f" at revision {revision!r}" if revision else ""
        raise TokenizerError(
            f"tokenizer {name!r}{at} is neither a local path nor to be had from the hub "
            f"({type(error).__name__}: {str(error).splitlines()[0]}); check the name and the network, or name a local "
            "directory"
        ) from error


def _read_roles(folder: Path) -> dict[str, str | int]:
    """Special tokens by role: from the tokenizer's config first, then from the model's.

    The first file that names a role wins. A list of ids (several ways to end a chat) counts as its first.
    """
    roles: dict[str, str | int] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json"):
        if not (folder / name).is_file():
            continue
        config = parse_object(_read_text(folder / name), str(folder / name))
        for role in _ROLES:
            token = config.get(f"{role}_token", config.get(f"{role}_token_id"))
            token = token.get("content") if isinstance(token, dict) else token
            token = token[0] if isinstance(token, list) and token else token
            if isinstance(token, str | int) and not isinstance(token, bool):
                roles.setdefault(role, token)
    return roles


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"cannot read {str(path)!r}: {error}; restore the file from the model's source") from error


def parse_object(text: str, where: str) -> dict[str, Any]:
    """Parse a JSON object; raises TokenizerError naming `where`."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise TokenizerError(f"{where!r} is not JSON ({error}); restore the file from the model's source") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{where!r} holds a JSON {type(value).__name__}, not an object; is it the right file?")
    return value
