"""Named cases of power loss: bugs that were found once, or nearly made, in the smallest form that shows them."""

from __future__ import annotations

import os
from pathlib import Path

from crash.hostfs import HostDisk, Kill, PowerCut
from harness import Cowfs, Sandbox, check

PAGE = 4096
BIG = b"X" * (10 * PAGE)


def put(path: Path, data: bytes, offset: int = 0) -> None:
    """Writes and fsyncs, the directory too."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.pwrite(fd, data, offset)
        os.fsync(fd)
    finally:
        os.close(fd)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Bench:
    """One branch, `main`, mounted on a disk whose power can be cut."""

    def __init__(self, sandbox: Sandbox, cowfs: Cowfs, host: HostDisk, name: str):
        self.cowfs, self.host, self.crash, self.name = cowfs, host, PowerCut(host), name
        self.top = sandbox.directory(f"m-{name}", 0o755)
        self.child_top = sandbox.directory(f"m-{name}-child", 0o755)
        cowfs("branch", "create", name, "--empty")
        cowfs.mount(name, self.top)
        self.file = self.top / "f"

    def fork(self, child: str) -> str:
        child = f"{self.name}-{child}"
        self.cowfs("branch", "create", child, "--from", self.name)
        return child

    def cut(self) -> None:
        """What the host had in memory goes to its disk first: its order is not ours."""
        self.host.sync()
        self.crash.strike([self.cowfs.serving_pid(self.name)])
        self.crash.recover(self.cowfs)
        self.cowfs("check")
        self.cowfs.mount(self.name, self.top)

    def kill(self) -> None:
        Kill().strike([self.cowfs.serving_pid(self.name)])
        Kill().recover(self.cowfs)
        self.cowfs.mount(self.name, self.top)

    def end(self) -> None:
        self.cowfs.unmount(self.name)


def unlink_unsynced(bench: Bench) -> str:
    """A durable file is unlinked, the unlink is not synced: gone or whole, never there and empty."""
    put(bench.file, BIG)
    bench.file.unlink()
    bench.cut()
    return whole_or_gone(bench.file, [BIG])


def unlink_after_fork(bench: Bench) -> str:
    """The same, the file lying in a sealed layer and partly rewritten since: gone or whole."""
    put(bench.file, BIG)
    bench.fork("k")
    put(bench.file, b"YYYY", 3 * PAGE)
    bench.file.unlink()
    bench.cut()
    return whole_or_gone(bench.file, [BIG[:3 * PAGE] + b"YYYY" + BIG[3 * PAGE + 4:]])


def rename_over(bench: Bench) -> str:
    """A durable file is renamed over a durable file, not synced: one of the two, whole."""
    put(bench.file, b"old-old")
    put(bench.top / "t", b"new")
    (bench.top / "t").rename(bench.file)
    bench.cut()
    check(bench.file.exists(), "both files are gone")
    return whole_or_gone(bench.file, [b"old-old", b"new"])


def shorten_and_grow(bench: Bench) -> str:
    """Shortened within a page before the cut, grown after it: zeros, live, in a fork, and after a remount."""
    return _grown(bench, 10000, kill=False)


def shorten_and_grow_then_kill(bench: Bench) -> str:
    """The same, shortened at a page's end, and the serving process is killed at last."""
    return _grown(bench, 2 * PAGE, kill=True)


def _grown(bench: Bench, size: int, kill: bool) -> str:
    """An inherited file, one page rewritten durably, shortened to `size` without a sync; the power goes when the
    host has the new length of the data file and cowfs's own record of it is lost."""
    put(bench.file, BIG)
    bench.fork("k")
    put(bench.file, b"YYYY", PAGE)
    os.truncate(bench.file, size)
    bench.cut()
    back = bench.file.stat().st_size
    check(back in (size, len(BIG)), f"size {back} after the cut")
    written = (BIG[:PAGE] + b"YYYY" + BIG[PAGE + 4:])[:back]
    check(bench.file.read_bytes() == written, "wrong bytes after the cut")
    os.truncate(bench.file, len(BIG))
    wanted = written + bytes(len(BIG) - back)
    check(bench.file.read_bytes() == wanted, "old bytes where the file grew, live")
    put(bench.file, wanted[:1])
    child = bench.fork("k2")
    bench.cowfs.mount(child, bench.child_top)
    seen = (bench.child_top / "f").read_bytes()
    bench.cowfs.unmount(child)
    check(seen == wanted, "old bytes where the file grew, in a fork")
    if kill:
        bench.kill()
    else:
        bench.cowfs.unmount(bench.name)
        bench.cowfs.mount(bench.name, bench.top)
    check(bench.file.read_bytes() == wanted, "old bytes where the file grew, after a remount")
    return f"came back with {back} bytes"


def whole_or_gone(path: Path, acceptable: list) -> str:
    if not path.exists():
        return "gone"
    data = path.read_bytes()
    check(data in acceptable, f"{path.name}: {len(data)} bytes, {data[:16]!r}.., are neither the old nor the new file")
    return "whole"


SCENARIOS = {
    "unlink-unsynced": unlink_unsynced,
    "unlink-after-fork": unlink_after_fork,
    "rename-over": rename_over,
    "shorten-and-grow": shorten_and_grow,
    "shorten-and-grow-then-kill": shorten_and_grow_then_kill,
}


def run_scenario(name: str, sandbox: Sandbox, cowfs: Cowfs, host: HostDisk) -> str:
    bench = Bench(sandbox, cowfs, host, name)
    detail = SCENARIOS[name](bench)
    bench.end()
    return detail
