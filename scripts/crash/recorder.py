"""Random operations on files, logged outside of the filesystem that will be lost.

    python3 -m crash.recorder --root MOUNT --log FILE --seed N --letter A DIRECTORY..

Runs until it is ended, an operation fails, or there were as many as it was told; each goes to the log before and after (crash/oplog.py). A process
of its own: the end of a mount may kill whoever touches a memory map on it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import random
import sys

from crash.oplog import LIMIT, PAGE, payload

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
RENAME_EXCHANGE = 2
FILES_MIN, FILES_MAX, NAMES = 6, 20, 40


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if LIBC.fallocate(fd, mode, offset, length) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def exchange(one: str, other: str) -> None:
    at = -100  # AT_FDCWD
    if LIBC.renameat2(at, one.encode(), at, other.encode(), RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Recorder:
    """One writer, alone in its directories, that knows what they should hold."""

    #: operation -> how often, about as a busy database mixes them, with more of the rare ones.
    WEIGHTS = {"create": 7, "unlink": 5, "rename": 7, "exchange": 1, "link": 2, "syncdir": 4, "write_direct": 18,
               "write": 22, "truncate": 6, "zero": 5, "allocate": 2, "copy": 4, "chmod": 1, "read": 3, "fsync": 9,
               "fdatasync": 6}

    def __init__(self, root: str, dirs: list, log: str, seed: int, letter: str):
        self.root, self.dirs, self.letter = root, dirs, letter
        self.random = random.Random(seed)
        self.log = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        self.number = 0
        self.names: dict = {}
        self.data: dict = {}
        for directory in dirs:
            for name in os.listdir(os.path.join(root, directory)):
                self._load(f"{directory}/{name}")

    def _load(self, name: str) -> None:
        with open(self.path(name), "rb") as file:
            ino = os.fstat(file.fileno()).st_ino
            self.names[name] = ino
            if ino not in self.data:
                self.data[ino] = bytearray(file.read())

    def path(self, name: str) -> str:
        return os.path.join(self.root, name)

    def note(self, *entry) -> None:
        os.write(self.log, json.dumps([self.number, *entry]).encode() + b"\n")

    def logged(self, what: str, action, *arguments) -> None:
        """Notes the intent, acts, notes that it returned (with the action's result, if it has one)."""
        self.note(what, *arguments)
        try:
            result = action()
        except OSError as error:
            self.note("error", error.errno)
            raise
        self.note("ok", *([] if result is None else [result]))

    def run(self, operations: int | None) -> None:
        choices, weights = zip(*self.WEIGHTS.items())
        while operations is None or self.number < operations:
            self.number += 1
            what = self.random.choices(choices, weights)[0]
            if len(self.names) < FILES_MIN or (what == "create" and len(self.names) < FILES_MAX):
                self.create()
            elif what == "syncdir":
                self.sync_directory()
            elif what != "create":
                name = self.random.choice(sorted(self.names))
                getattr(self, what)(name, self.names[name])

    def any_name(self) -> str:
        return f"{self.random.choice(self.dirs)}/f{self.random.randrange(NAMES)}"

    # ---- names

    def create(self) -> None:
        name = self.any_name()
        if name in self.names:
            return

        def action() -> int:
            fd = os.open(self.path(name), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            ino = os.fstat(fd).st_ino
            os.close(fd)
            self.names[name], self.data[ino] = ino, bytearray()
            return ino

        self.logged("create", action, name)

    def unlink(self, name: str, ino: int) -> None:
        self.logged("unlink", lambda: os.unlink(self.path(name)), name, ino)
        del self.names[name]

    def rename(self, name: str, ino: int) -> None:
        new = self.any_name()
        if self.names.get(new) == ino:
            return  # two links of one file: rename does nothing
        self.logged("rename", lambda: os.rename(self.path(name), self.path(new)), name, new, ino)
        self.names[new] = self.names.pop(name)

    def exchange(self, name: str, ino: int) -> None:
        other = self.random.choice(sorted(self.names))
        if self.names[other] == ino:
            return
        self.logged("exchange", lambda: exchange(self.path(name), self.path(other)), name, other, ino,
                    self.names[other])
        self.names[name], self.names[other] = self.names[other], ino

    def link(self, name: str, ino: int) -> None:
        new = self.any_name()
        if new in self.names:
            return
        self.logged("link", lambda: os.link(self.path(name), self.path(new)), name, new, ino)
        self.names[new] = ino

    def sync_directory(self) -> None:
        directory = self.random.choice(self.dirs)

        def action() -> None:
            fd = os.open(self.path(directory), os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

        self.logged("syncdir", action, directory)

    # ---- contents; a file is closed before its operation counts as returned

    def on_file(self, name: str, flags: int, use) -> None:
        fd = os.open(self.path(name), flags)
        try:
            use(fd)
        finally:
            os.close(fd)

    def _store(self, ino: int, offset: int, data: bytes) -> None:
        content = self.data[ino]
        if len(content) < offset + len(data):
            content.extend(bytes(offset + len(data) - len(content)))
        content[offset:offset + len(data)] = data

    def tag(self, ino: int) -> str:
        return f"{self.letter}{ino & 0xffffff:06x}{self.number & 0xfffff:05x}{os.getpid() & 0xffff:04x}"

    def write_direct(self, name: str, ino: int) -> None:
        pages = self.random.randint(1, 4)
        page = self.random.randrange(LIMIT // PAGE - 4)
        size = len(self.data[ino])
        if page * PAGE > size and self.random.random() < 0.7:
            page = min(size // PAGE, LIMIT // PAGE - 4)  # not always a hole
        tag = self.tag(ino)
        data = payload(tag, pages * PAGE)

        def use(fd: int) -> None:
            with mmap.mmap(-1, len(data)) as aligned:
                aligned[:] = data
                _whole(os.pwrite(fd, aligned, page * PAGE), len(data))

        self.logged("write", lambda: self.on_file(name, os.O_RDWR | os.O_DIRECT, use), name, ino, page * PAGE,
                    len(data), tag, "direct")
        self._store(ino, page * PAGE, data)

    def write(self, name: str, ino: int) -> None:
        rng, size = self.random, len(self.data[ino])
        if rng.random() < 0.4:
            offset = size
        else:
            offset = rng.randrange(max(size, 1)) if rng.random() < 0.8 else rng.randrange(LIMIT - 20000)
        if rng.random() < 0.4:
            offset = offset // 8192 * 8192
        length = min(rng.choice([8192, rng.randint(1, 300), rng.randint(1, 20000)]), LIMIT - offset)
        if length <= 0:
            return
        inside = offset + length <= size
        how = rng.choices(["buffered", "dsync", "sync", "map", "msync"], [74, 9, 5, 6 * inside, 6 * inside])[0]
        flags = {"dsync": os.O_DSYNC, "sync": os.O_SYNC}.get(how, 0)
        tag = self.tag(ino)
        data = payload(tag, length)

        def use(fd: int) -> None:
            if how in ("map", "msync"):
                with mmap.mmap(fd, size) as area:
                    area[offset:offset + length] = data
                    if how == "msync":
                        area.flush()
            else:
                _whole(os.pwrite(fd, data, offset), length)

        self.logged("write", lambda: self.on_file(name, os.O_RDWR | flags, use), name, ino, offset, length, tag, how)
        self._store(ino, offset, data)

    def truncate(self, name: str, ino: int) -> None:
        rng, content = self.random, self.data[ino]
        inside = rng.randrange(len(content) + 1)
        size = rng.choice([0, rng.randrange(LIMIT), inside, inside // PAGE * PAGE])
        self.logged("truncate", lambda: self.on_file(name, os.O_RDWR, lambda fd: os.ftruncate(fd, size)), name, ino,
                    size)
        del content[size:]
        content.extend(bytes(size - len(content)))

    def _range(self) -> tuple:
        offset = self.random.randrange(LIMIT - PAGE)
        length = self.random.randint(1, LIMIT - offset)
        if self.random.random() < 0.5:
            offset, length = offset // PAGE * PAGE, max(PAGE, length // PAGE * PAGE)
        return offset, length

    def zero(self, name: str, ino: int) -> None:
        offset, length = self._range()
        mode = self.random.choice([PUNCH_HOLE | KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE | KEEP_SIZE, ZERO_RANGE])
        grows = mode == ZERO_RANGE
        self.logged("zero", lambda: self.on_file(name, os.O_RDWR, lambda fd: fallocate(fd, mode, offset, length)),
                    name, ino, offset, length, grows)
        content = self.data[ino]
        kept = length if grows else max(0, min(length, len(content) - offset))
        if kept:
            self._store(ino, offset, bytes(kept))

    def allocate(self, name: str, ino: int) -> None:
        offset, length = self._range()
        self.logged("allocate", lambda: self.on_file(name, os.O_RDWR, lambda fd: fallocate(fd, 0, offset, length)),
                    name, ino, offset, length)
        content = self.data[ino]
        content.extend(bytes(max(0, offset + length - len(content))))

    def copy(self, name: str, ino: int) -> None:
        source_name = self.random.choice(sorted(self.names))
        source = self.names[source_name]
        pages = min(self.random.randint(1, 6), len(self.data[source]) // PAGE)
        if source == ino or pages == 0:
            return
        at = self.random.randrange(len(self.data[source]) // PAGE - pages + 1) * PAGE
        offset, length = self.random.randrange(LIMIT // PAGE - pages) * PAGE, pages * PAGE

        def use(fd: int) -> None:
            def copy_from(source_fd: int) -> None:
                done = 0
                while done < length:  # it may copy less than asked for
                    step = os.copy_file_range(source_fd, fd, length - done, at + done, offset + done)
                    if step == 0:
                        raise OSError(5, "copy_file_range ended early")
                    done += step
            self.on_file(source_name, os.O_RDONLY, copy_from)

        self.logged("copy", lambda: self.on_file(name, os.O_RDWR, use), name, ino, offset, length, source, at)
        self._store(ino, offset, bytes(self.data[source][at:at + length]))

    def chmod(self, name: str, ino: int) -> None:
        mode = self.random.choice([0o600, 0o644, 0o660])
        self.logged("chmod", lambda: os.chmod(self.path(name), mode), name, ino, mode)

    def fsync(self, name: str, ino: int) -> None:
        self.logged("fsync", lambda: self.on_file(name, os.O_RDWR, os.fsync), name, ino)

    def fdatasync(self, name: str, ino: int) -> None:
        self.logged("fdatasync", lambda: self.on_file(name, os.O_RDWR, os.fdatasync), name, ino)

    def read(self, name: str, ino: int) -> None:
        got = bytearray()

        def use(fd: int) -> None:
            # To the end: a read that the end of the mount cuts short is followed by an error.
            while part := os.pread(fd, LIMIT, len(got)):
                got.extend(part)

        self.logged("read", lambda: self.on_file(name, os.O_RDONLY, use), name, ino)
        if got != self.data[ino]:
            at = next((i for i, (a, b) in enumerate(zip(got, self.data[ino])) if a != b), -1)
            self.note("mismatch", f"{name} (inode {ino}): {len(got)} bytes read, {len(self.data[ino])} written,"
                                  f" first difference at {at}")


def _whole(done: int, wanted: int) -> None:
    if done != wanted:
        raise OSError(28, f"{done} of {wanted} bytes written")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--log", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--letter", default="A", help="first byte of what it writes")
    parser.add_argument("--operations", type=int, help="end after so many")
    parser.add_argument("dirs", nargs="+")
    args = parser.parse_args()
    try:
        Recorder(args.root, args.dirs, args.log, args.seed, args.letter).run(args.operations)
    except OSError as error:
        print(f"recorder: {error}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
