"""Write a .gguf file out as a plain checkpoint, once, for engines that cannot read it."""

import os
import shutil
from pathlib import Path
from tempfile import mkdtemp

from curator.data import ModelIdentity


def plain_checkpoint(model: str, identity: ModelIdentity) -> str:
    """Where an engine finds the model: itself, or the directory that a .gguf file was written out to.

    That directory lies in the user's cache (`XDG_CACHE_HOME`), named by the weights' digest and the dtype, so that all
    workers of a machine and all later runs share it; whoever is second to finish discards its copy.
    """
    path = Path(model).expanduser()
    if path.suffix != ".gguf":
        return str(path) if path.exists() else model
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "token-curator" / "checkpoints"
    folder = cache / f"{identity.weights_digest[:32]}-{identity.dtype}"
    if not folder.exists():
        from curator.scorers.causal_lm import load_model

        cache.mkdir(parents=True, exist_ok=True)
        staged = Path(mkdtemp(dir=cache, prefix=".staged-"))
        try:
            load_model(model, None, identity.dtype, "sdpa", on_gpu=False, threads=1).save_pretrained(staged)
            staged.rename(folder)
        except OSError:
            if not folder.exists():
                raise
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    return str(folder)
