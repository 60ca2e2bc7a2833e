"""Which states of a few directories a crash may leave: everything acknowledged, in any mix with what was not.

The model replays a recorder's log. For each name, page, size and mode it keeps the values that may be found:
the last one that had to be durable and all that came after it. A sync, when it is acknowledged, leaves one.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, field
from pathlib import Path

from crash.oplog import LIMIT, PAGE, payload

SECTOR = 512
#: In the place of an inode number: a file that was just being made.
UNKNOWN = -1
NEW_MODE = 0o644


@dataclass
class Found:
    """One file as it is read back."""

    ino: int
    links: int
    mode: int
    data: bytes


@dataclass
class File:
    """The values that may be found in one file."""

    now: bytearray = field(default_factory=lambda: bytearray(LIMIT))
    older: dict = field(default_factory=dict)  # page number -> earlier contents that may come back
    sizes: list = field(default_factory=lambda: [0])
    modes: list = field(default_factory=lambda: [NEW_MODE])
    #: A name of it is durable and was not given up since: it must be found under some name.
    anchored: bool = False

    def put(self, offset: int, data: bytes, size: int) -> None:
        end = offset + len(data)
        pages = range(offset // PAGE, -(-end // PAGE) if data else 0)
        before = [bytes(self.now[page * PAGE:page * PAGE + PAGE]) for page in pages]
        self.now[offset:end] = data
        for page, old in zip(pages, before):
            if old != self.now[page * PAGE:page * PAGE + PAGE]:
                self.older.setdefault(page, []).append(old)
        self.sizes.append(size)

    def settle_pages(self, first: int = 0, end: int = LIMIT // PAGE) -> None:
        for page in range(first, end):
            self.older.pop(page, None)

    def settle(self) -> None:
        self.settle_pages()
        del self.sizes[:-1]
        del self.modes[:-1]


class Model:
    """The directories of one recorder."""

    def __init__(self, dirs: list, everything_completed: bool):
        """`everything_completed`: whatever returned must be there (SIGKILL), not only what was synced."""
        self.dirs, self.everything_completed = dirs, everything_completed
        self.names: dict = {}
        self.files: dict = {}
        self._pending: dict = {}
        #: The same without what was acknowledged once a power cut had begun, where that is told apart.
        self.before: Model | None = None

    @classmethod
    def of(cls, dirs: list, found: dict, everything_completed: bool) -> "Model":
        """Starts with what is there now, all of it durable."""
        model = cls(dirs, everything_completed)
        model.adopt(found)
        for name in model.names:
            model._settle_name(name)
        for file in model.files.values():
            file.settle()
        return model

    def copy(self) -> "Model":
        return copy.deepcopy(self)

    # ---- replay

    def replay(self, entries: list, settle_until: int | None = None, complete_until: int | None = None) -> None:
        """Applies log entries. Acknowledgements after position `settle_until` make nothing certain:
        they may have come after the instant that is to be judged. Those after `complete_until` make certain only
        what they synced: the close of a file may succeed in the kernel while the serving process dies."""
        for position, (number, what, *rest) in entries:
            certain = settle_until is None or position <= settle_until
            completed = certain and (complete_until is None or position <= complete_until)
            if what == "ok":
                self._acknowledge(self._pending.pop(number), rest, certain, completed)
            elif what not in ("error", "mismatch"):
                self._pending[number] = (what, rest)
                getattr(self, f"_begin_{what}")(*rest)

    def _acknowledge(self, operation: tuple, result: list, certain: bool, completed: bool) -> None:
        what, arguments = operation
        if what == "create":
            # Known from now on whatever is certain about it: later entries name it by number.
            self.names[arguments[0]][-1] = result[0]
            self.files[result[0]] = File()
        if not certain:
            return
        if self.everything_completed and completed:
            touched = self._touched(what, arguments, result)
            for name in touched[0]:
                self._settle_name(name)
            for ino in touched[1]:
                self.files[ino].settle()
        if what == "syncdir":
            for name in [n for n in self.names if n.split("/")[0] == arguments[0]]:
                self._settle_name(name)
        elif what == "fsync":
            self.files[arguments[1]].settle()
        elif what == "fdatasync":
            file = self.files[arguments[1]]
            file.settle_pages()
            del file.sizes[:-1]
        elif what == "write" and arguments[5] in ("dsync", "sync", "msync"):
            self._settle_range(arguments[1], arguments[2], arguments[3])

    @staticmethod
    def _touched(what: str, arguments: list, result: list) -> tuple:
        """The names and the inodes that an operation changes."""
        if what == "create":
            return [arguments[0]], [result[0]]
        if what in ("rename", "exchange", "link"):
            return arguments[:2], []
        if what == "unlink":
            return arguments[:1], []
        if what in ("syncdir", "read"):
            return [], []
        return [], [arguments[1]]

    def _settle_name(self, name: str) -> None:
        last = self.names[name][-1]
        self.names[name] = [last]
        if last is not None and last in self.files:
            self.files[last].anchored = True

    def _settle_range(self, ino: int, offset: int, length: int) -> None:
        file = self.files[ino]
        file.settle_pages(offset // PAGE, -(-(offset + length) // PAGE))
        if offset + length == file.sizes[-1]:
            del file.sizes[:-1]

    def _name_may_be(self, name: str, ino: int | None) -> None:
        self.names.setdefault(name, [None]).append(ino)

    def _begin_create(self, name: str) -> None:
        self._name_may_be(name, UNKNOWN)

    def _begin_unlink(self, name: str, ino: int) -> None:
        self._name_may_be(name, None)
        self.files[ino].anchored = False

    def _begin_rename(self, old: str, new: str, ino: int) -> None:
        replaced = self.names.get(new, [None])[-1]
        if replaced is not None:
            self.files[replaced].anchored = False
        self._name_may_be(old, None)
        self._name_may_be(new, ino)

    def _begin_exchange(self, one: str, other: str, ino: int, other_ino: int) -> None:
        self._name_may_be(one, other_ino)
        self._name_may_be(other, ino)

    def _begin_link(self, _old: str, new: str, ino: int) -> None:
        self._name_may_be(new, ino)

    def _begin_write(self, _name: str, ino: int, offset: int, length: int, tag: str, _how: str) -> None:
        file = self.files[ino]
        file.put(offset, payload(tag, length), max(file.sizes[-1], offset + length))

    def _begin_copy(self, _name: str, ino: int, offset: int, length: int, source: int, at: int) -> None:
        file = self.files[ino]
        data = bytes(self.files[source].now[at:at + length])
        file.put(offset, data, max(file.sizes[-1], offset + length))

    def _begin_truncate(self, _name: str, ino: int, size: int) -> None:
        file = self.files[ino]
        # Everything behind the new end reads as zeros from now on, also when the file grows again.
        file.put(min(size, file.sizes[-1]), bytes(LIMIT - min(size, file.sizes[-1])), size)

    def _begin_zero(self, _name: str, ino: int, offset: int, length: int, grows: bool) -> None:
        file = self.files[ino]
        size = max(file.sizes[-1], offset + length) if grows else file.sizes[-1]
        file.put(offset, bytes(length), size)

    def _begin_allocate(self, _name: str, ino: int, offset: int, length: int) -> None:
        file = self.files[ino]
        file.sizes.append(max(file.sizes[-1], offset + length))

    def _begin_chmod(self, _name: str, ino: int, mode: int) -> None:
        self.files[ino].modes.append(mode)

    def _begin_syncdir(self, _name: str) -> None:
        pass

    def _begin_read(self, _name: str, _ino: int) -> None:
        pass

    _begin_fsync = _begin_fdatasync = _begin_read

    # ---- judging

    def adopt(self, found: dict) -> None:
        """Goes on from what was found, which had been judged; none of it becomes durable by this."""
        self._pending.clear()
        for name in self.names.keys() | found.keys():
            ino = found[name].ino if name in found else None
            if self.names.setdefault(name, [ino])[-1] != ino:
                self.names[name].append(ino)
        present = {entry.ino: entry for entry in found.values()}
        for ino, file in self.files.items():
            file.anchored = file.anchored and ino in present
        for ino, entry in present.items():
            file = self.files.setdefault(ino, File())
            whole = entry.data + bytes(LIMIT - len(entry.data))
            for page in range(LIMIT // PAGE):
                span = slice(page * PAGE, page * PAGE + PAGE)
                if whole[span] != file.now[span]:
                    file.put(page * PAGE, whole[span], file.sizes[-1])
            file.sizes.append(len(entry.data))
            file.modes.append(entry.mode)

    def judge(self, found: dict) -> list:
        """What no crash may have left, in words; empty if all is well."""
        wrong = []
        for name in sorted(self.names.keys() | found.keys()):
            may = self.names.get(name, [None])
            got = found[name].ino if name in found else None
            if got not in may and not (UNKNOWN in may and got is not None):
                wrong.append(f"{name}: may be {may[-6:]}, is {got} (inode numbers; None: no such name)")
        paths: dict = {}
        for name, entry in found.items():
            paths.setdefault(entry.ino, []).append((name, entry))
        for ino, named in paths.items():
            name, entry = named[0]
            if entry.links != len(named):
                wrong.append(f"{name}: says {entry.links} links, has {len(named)} names")
            if ino in self.files:
                wrong += [f"{name} (inode {ino}): {what}" for what in judge_file(self.files[ino], entry)]
        lost = [ino for ino, file in self.files.items() if file.anchored and ino not in paths]
        wrong += [f"inode {ino} was durable, never removed, and has no name" for ino in lost]
        return wrong


def judge_file(file: File, entry: Found) -> list:
    """What is wrong with the contents of one file; at most one page is named."""
    wrong = []
    if entry.mode not in file.modes:
        wrong.append(f"mode {entry.mode:o}, may be {[f'{m:o}' for m in file.modes[-4:]]}")
    size = len(entry.data)
    if not min(file.sizes) <= size <= max(file.sizes):
        wrong.append(f"size {size}, may be {sorted(set(file.sizes))[:8]}")
    for page in range(-(-size // PAGE)):
        got = entry.data[page * PAGE:page * PAGE + PAGE]
        may = [bytes(file.now[page * PAGE:page * PAGE + PAGE]), *file.older.get(page, [])]
        bad = _sector_of_none(got, may)
        if bad is not None:
            seen = got[bad:bad + 24]
            wrong.append(f"page {page} byte {bad}: {seen!r}, may be {sorted({m[bad:bad + 24] for m in may})[:4]}"
                         f" (size {size}, {len(may)} versions)")
            break
    return wrong


def _sector_of_none(got: bytes, may: list):
    """Where, in the first sector that no acceptable version of the page has, it leaves the last version."""
    if any(got == m[:len(got)] for m in may):
        return None
    for at in range(0, len(got), SECTOR):
        sector = got[at:at + SECTOR]
        if not any(sector == m[at:at + len(sector)] for m in may):
            return at + next(i for i, byte in enumerate(sector) if byte != may[0][at + i])
    return None


def read_tree(root: Path, dirs: list) -> dict:
    """Everything in the directories, by "directory/name"."""
    found = {}
    for directory in dirs:
        for name in os.listdir(root / directory):
            path = root / directory / name
            status = path.stat()
            data = path.read_bytes()
            if len(data) != status.st_size:
                raise OSError(f"{path}: stat says {status.st_size} bytes, {len(data)} were read")
            found[f"{directory}/{name}"] = Found(status.st_ino, status.st_nlink, status.st_mode & 0o7777, data)
    return found
