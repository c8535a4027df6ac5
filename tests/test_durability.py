"""Folders above that cannot be synced: somebody else's are let be, a failing disk is not."""

import errno
import os
from pathlib import Path

import pytest

from curator import durability


@pytest.mark.parametrize(
    ("number", "passes"),
    [(errno.EACCES, True), (errno.EROFS, True), (errno.EINVAL, True), (errno.EIO, False), (errno.ENOSPC, False)],
)
def test_a_folder_above_may_refuse_to_be_synced_but_not_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, passes: bool
) -> None:
    synced: list[Path] = []

    def sync(path: Path) -> None:
        synced.append(path)
        if path == tmp_path:
            raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(durability, "sync", sync)
    monkeypatch.setattr(durability, "_durable", set())
    folder = tmp_path / "a" / "b"
    if passes:
        durability.make_folder(folder)
        assert folder.is_dir() and synced[-2:] == [tmp_path, tmp_path / "a"]
        synced.clear()
        durability.make_folder(folder)
        assert synced == [], "once for each folder"
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            durability.make_folder(folder)
