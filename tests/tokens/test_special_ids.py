"""A checkpoint that names ordinary tokens as its special ones."""

import json
import shutil
from pathlib import Path

import pytest

import curator.scorers
from curator.errors import TokenizerError
from curator.tokens.tokenizer import TokensConfig, load_tokenizer


def test_ordinary_tokens_named_as_special_are_told_with_the_files_to_correct(tmp_path: Path) -> None:
    shutil.copy(Path(curator.scorers.__file__).parent / "bigram_model" / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2}))
    with pytest.raises(TokenizerError, match="ordinary text; correct bos_token_id, eos_token_id"):
        load_tokenizer(str(tmp_path), None, TokensConfig())
