"""What a disk may hold after a power loss, from a record of all that a job did to it (see filefaults.c).

Only this is promised: the content of a file as of its last fsync, and a folder's entries as of the folder's. What came
after may be there or not, each file and folder for itself; a file's new content may be there in part, or as zeros.
"""

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_RECORD = struct.Struct("=IIQQQQQ")
CREATE, WRITE, SYNC, LINK, RENAME, UNLINK, MKDIR, RMDIR, TRUNCATE = 2, 3, 4, 5, 6, 7, 8, 9, 10
KINDS = ("synced alone", "names without content", "names with torn content", "names with zeros", "some of it")
"""What survives of that which was not synced."""


@dataclass(frozen=True)
class Operation:
    """One change, or one fsync."""

    kind: int
    flags: int
    inode: int
    offset: int
    path: str
    other: str
    data: bytes


def read_log(path: Path) -> list[Operation]:
    """All operations, in order."""
    content, position, found = path.read_bytes(), 0, []
    while position < len(content):
        kind, flags, inode, offset, *sizes = _RECORD.unpack_from(content, position)
        position += _RECORD.size
        parts = []
        for size in sizes:
            parts.append(content[position : position + size])
            position += size
        found.append(Operation(kind, flags, inode, offset, parts[0].decode(), parts[1].decode(), parts[2]))
    return found


@dataclass
class File:
    """A file apart from its names."""

    content: bytearray = field(default_factory=bytearray)
    synced: bytes = b""


@dataclass
class Folder:
    """A folder: its entries, those that are on the disk, and the changes in between."""

    entries: dict[str, "File | Folder"] = field(default_factory=dict)
    synced: dict[str, "File | Folder"] = field(default_factory=dict)
    changes: list[tuple[str, "File | Folder | None"]] = field(default_factory=list)

    def set(self, name: str, entry: "File | Folder | None") -> None:
        if entry is None:
            self.entries.pop(name, None)
        else:
            self.entries[name] = entry
        self.changes.append((name, entry))

    def sync(self) -> None:
        self.synced, self.changes = dict(self.entries), []


class Disk:
    """The folder `root`, which was there before, as operations change it."""

    def __init__(self, root: str) -> None:
        self.prefix, self.root = root, Folder()
        self.by_inode: dict[int, File] = {}

    def apply(self, operation: Operation) -> None:
        folder, name = self._place(operation.path)
        match operation.kind:
            case 2:
                if operation.flags & 1:
                    self.by_inode[operation.inode] = File()
                    folder.set(name, self.by_inode[operation.inode])
                elif operation.flags & 2:
                    self.by_inode[operation.inode].content.clear()
            case 3:
                content, end = self.by_inode[operation.inode].content, operation.offset + len(operation.data)
                content.extend(bytes(max(end - len(content), 0)))
                content[operation.offset : end] = operation.data
            case 4:
                entry = folder.entries.get(name) if name else self.root
                if isinstance(entry, Folder):
                    entry.sync()
                else:
                    file = self.by_inode[operation.inode]
                    file.synced = bytes(file.content)
            case 5 | 6:
                source, old = self._place(operation.other)
                folder.set(name, source.entries[old])
                if operation.kind == RENAME:
                    source.set(old, None)
            case 7 | 9:
                folder.set(name, None)
            case 8:
                folder.set(name, Folder())
            case 10:
                del self.by_inode[operation.inode].content[operation.offset :]

    def _place(self, path: str) -> tuple[Folder, str]:
        parts = path.removeprefix(self.prefix).strip("/").split("/")
        folder = self.root
        for part in parts[:-1]:
            entry = folder.entries[part]
            assert isinstance(entry, Folder)
            folder = entry
        return folder, parts[-1]

    def survivors(self, kind: str, seed: int) -> dict[str, bytes | None]:
        """A state that the disk may be in after a loss now: content by path, None for a folder."""
        found: dict[str, bytes | None] = {}
        self._collect(self.root, "", kind, random.Random(seed), found)
        return found

    def _collect(
        self, folder: Folder, path: str, kind: str, chance: random.Random, found: dict[str, bytes | None]
    ) -> None:
        entries = dict(folder.synced if kind in ("synced alone", "some of it") else folder.entries)
        if kind == "some of it":
            for name, entry in folder.changes[: chance.randint(0, len(folder.changes))]:
                if entry is None:
                    entries.pop(name, None)
                else:
                    entries[name] = entry
        for name, entry in entries.items():
            where = f"{path}/{name}" if path else name
            if isinstance(entry, Folder):
                found[where] = None
                self._collect(entry, where, kind, chance, found)
            else:
                found[where] = _content(entry, kind, chance)


def _content(file: File, kind: str, chance: random.Random) -> bytes:
    written = bytes(file.content)
    if written == file.synced:
        return written
    match kind if kind != "some of it" else chance.choice(KINDS[1:4]):
        case "names with torn content":
            return written[: (len(written) + 1) // 2]
        case "names with zeros":
            return bytes(len(written))
    return file.synced


def states(operations: list[Operation], root: str, step: int = 1) -> Iterator[tuple[str, dict[str, bytes | None]]]:
    """Every different state after every `step`-th operation, each with what it is; the last moment is always there."""
    disk, known = Disk(root), set()
    for number, operation in enumerate(operations, 1):
        disk.apply(operation)
        if number % step and number != len(operations):
            continue
        for kind in KINDS:
            state = disk.survivors(kind, number)
            mark = hash(tuple(sorted((name, content or b"") for name, content in state.items())))
            if mark not in known:
                known.add(mark)
                yield f"{kind}, after {number} of {len(operations)} operations", state


def write(state: dict[str, bytes | None], folder: Path) -> None:
    """Make a state real."""
    folder.mkdir(parents=True)
    for name, content in sorted(state.items()):
        if content is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(content)
