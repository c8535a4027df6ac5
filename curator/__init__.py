"""Token-weighted datasets for training language models: score a corpus with reference models, weigh every token.

The names below are the public surface; importing this package loads no engine, no Ray and no torch.
"""

from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curator.audit import verify
    from curator.client import Client
    from curator.loading import load
    from curator.manifest import Manifest, read_manifest
    from curator.pipeline import curate, select
    from curator.spec import CurationSpec, load_spec, parse_spec

__version__ = _version("token-curator")

__all__ = [
    "Client",
    "CurationSpec",
    "Manifest",
    "curate",
    "load",
    "load_spec",
    "parse_spec",
    "read_manifest",
    "select",
    "verify",
]

_HOMES = {
    "Client": "client",
    "CurationSpec": "spec",
    "Manifest": "manifest",
    "curate": "pipeline",
    "load": "loading",
    "load_spec": "spec",
    "parse_spec": "spec",
    "read_manifest": "manifest",
    "select": "pipeline",
    "verify": "audit",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'curator' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"curator.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
