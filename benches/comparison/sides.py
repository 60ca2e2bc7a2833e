"""The sides of the comparison: the same cluster on the disk itself, on branches, and on the peers.

Every side is a data directory made from one golden cluster. Sides of one group lie on one disk and are compared with
the first of them, which is that disk's plain ext4.
"""

from __future__ import annotations

import mmap
import os
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from harness import Cluster, Cowfs, Failure, Postgres, Sandbox, give_to_postgres, run, say

PAGE = 8192
#: Pages that each rung of a deep chain owns.
PAGES_PER_RUNG = 200


@dataclass
class Side:
    """One data directory and what serves it."""

    name: str
    group: str
    data: Path
    #: Gives the pid of the process that serves the filesystem, or None when it is the kernel.
    server: object = lambda: None
    #: The store and branch, for a side that is cowfs.
    cowfs: object = None
    branch: str = ""
    options: tuple = ()
    cluster: Cluster = None
    #: Directories whose files the host caches for this side.
    below: list = field(default_factory=list)
    #: Gives the bytes on the disk that are the side's own, not shared with what it was made from; None if unknown.
    own: object = lambda: None

    def status(self) -> dict:
        """What the serving process tells of itself; empty for others."""
        if not self.branch:
            return {}
        return next((s["server"] for s in self.cowfs.json("status") if s.get("branch") == self.branch), {})

    def remount(self) -> None:
        """A serving process that knows nothing, as after a reboot. The cluster must be stopped."""
        if self.branch:
            self.cowfs.unmount(self.branch)
            self.cowfs.mount(self.branch, self.data, *self.options)


def largest_files(data: Path, count: int = 4) -> list:
    files = [p for p in [*(data / "base").rglob("*"), *(data / "bench").rglob("*")] if p.is_file()]
    return sorted(files, key=lambda p: p.stat().st_size, reverse=True)[:count]


def rewrite_pages(data: Path, count: int, seed: int) -> None:
    """Writes `count` random pages of the largest files anew, with what they hold."""
    rng = random.Random(seed)
    files = largest_files(data)
    buffer = mmap.mmap(-1, PAGE)
    for path in files:
        with open(path, "r+b", buffering=0) as file:
            pages = path.stat().st_size // PAGE
            for page in rng.sample(range(pages), min(pages, count // len(files))):
                file.seek(page * PAGE)
                file.readinto(buffer)
                file.seek(page * PAGE)
                file.write(buffer)
            os.fsync(file.fileno())


class Sides:
    """Makes the sides that are wanted and can be had here."""

    NAMES = ("native", "import", "fork", "fork-uring", "depth-10", "depth-100", "overlayfs", "fuse-overlayfs", "loop-ext4", "loop-xfs",
             "loop-btrfs", "loop-cowfs")

    def __init__(self, sandbox: Sandbox, binary: Path, postgres: Postgres, golden: Path, wanted: list, loop_size: str):
        self.sandbox, self.binary, self.postgres = sandbox, binary, postgres
        self.golden, self.wanted, self.loop_size = golden, wanted, loop_size
        self.store = None

    def make(self) -> list:
        """All sides that are wanted; one that this machine lacks the programs for is said and left out."""
        makers = {"native": self.native, "import": lambda: self.branch("import", 0), "fork": lambda: self.branch("fork", 1),
                  "fork-uring": lambda: self.branch("fork-uring", 1, "-o", "uring"),
                  "depth-10": lambda: self.branch("depth-10", 10), "depth-100": lambda: self.branch("depth-100", 100),
                  "overlayfs": self.overlayfs, "fuse-overlayfs": self.fuse_overlayfs, "loop-ext4": self.loop_ext4,
                  "loop-xfs": self.loop_xfs, "loop-btrfs": self.loop_btrfs, "loop-cowfs": self.loop_cowfs}
        sides = []
        for name in self.wanted:
            program = {"fuse-overlayfs": "fuse-overlayfs", "loop-btrfs": "mkfs.btrfs", "loop-xfs": "mkfs.xfs"}.get(name)
            if program and not shutil.which(program):
                say(f"{name}: left out, there is no {program} (scripts/install-deps bench)")
                continue
            say(f"  making {name}")
            side = makers[name]()
            side.cluster = Cluster(self.sandbox, self.postgres, name, side.data)
            sides.append(side)
        return sides

    def copy(self, to: Path, *options: str) -> Path:
        run(["cp", "-a", "-T", *(options or ["--reflink=never"]), self.golden, to], timeout_s=1800)
        run(["sync", "-f", to])
        return to

    def scratch(self) -> Side:
        """A copy that is no side."""
        side = Side("scratch", "", self.copy(self.sandbox.base / "scratch"))
        side.cluster = Cluster(self.sandbox, self.postgres, side.name, side.data)
        return side

    def native(self) -> Side:
        data = self.copy(self.sandbox.base / "native")
        return Side("native", "disk", data, below=[data])

    def base(self) -> Cowfs:
        """The store with the golden cluster as the base of branch `main`."""
        if self.store is None:
            self.store = Cowfs(self.sandbox, self.binary, self.sandbox.base / "store")
            self.store("init")
            self.store("import", self.golden, "--as", "main", timeout_s=1800)
        return self.store

    def branch(self, name: str, depth: int, *options: str) -> Side:
        cowfs = self.base()
        if depth == 0:
            branch = "main"
        else:
            branch = "main" if depth == 1 else self.deepen(cowfs, name, depth - 1)
            cowfs("branch", "create", name, "--from", branch)
            branch = name
        return self.mounted(cowfs, name, "disk", branch, *options)

    def deepen(self, cowfs: Cowfs, name: str, layers: int) -> str:
        """A chain of forks below a side, each with pages of its own; gives the last."""
        branch, where = "main", self.sandbox.base / f"rung-{name}"
        for number in range(layers):
            rung = f"{name}-rung-{number}"
            cowfs("branch", "create", rung, "--from", branch)
            cowfs.mount(rung, where)
            rewrite_pages(where, PAGES_PER_RUNG, number)
            cowfs.unmount(rung)
            branch = rung
        where.rmdir()
        return branch

    def mounted(self, cowfs: Cowfs, name: str, group: str, branch: str, *options: str) -> Side:
        where = self.sandbox.directory(f"m-{name}")
        cowfs.mount(branch, where, *options)
        return Side(name, group, where, server=lambda: cowfs.serving_pid(branch), cowfs=cowfs, branch=branch,
                    options=options, below=[cowfs.store / "layers"], own=lambda: disk_bytes(cowfs.head_layer(branch)))

    def upper(self, name: str) -> tuple:
        made = [self.sandbox.directory(f"{name}-{part}") for part in ("upper", "work", "mount")]
        return made, f"lowerdir={self.golden},upperdir={made[0]},workdir={made[1]}"

    def overlayfs(self) -> Side:
        (upper, _, where), options = self.upper("overlayfs")
        run(["mount", "-t", "overlay", "overlay", "-o", options, where])
        self.sandbox.on_exit(lambda: run(["umount", "-l", where]))
        return Side("overlayfs", "disk", where, below=[upper], own=lambda: disk_bytes(upper))

    def fuse_overlayfs(self) -> Side:
        (upper, _, where), options = self.upper("fuse-overlayfs")
        run(["fuse-overlayfs", "-o", f"{options},allow_other", where])
        self.sandbox.on_exit(lambda: run(["umount", "-l", where]))
        return Side("fuse-overlayfs", "disk", where, server=lambda: pid_of("fuse-overlayfs", where), below=[upper],
                    own=lambda: disk_bytes(upper))

    def loop_ext4(self) -> Side:
        top = self.sandbox.loop_filesystem("l-ext4", ["mkfs.ext4", "-q", "-F"], self.loop_size)
        return Side("loop-ext4", "loop", self.copy(top / "data"), below=[top / "data"])

    def loop_xfs(self) -> Side:
        top = self.sandbox.loop_filesystem("l-xfs", ["mkfs.xfs", "-q", "-f"], self.loop_size)
        self.copy(top / "golden")
        run(["cp", "-a", "-T", "--reflink=always", top / "golden", top / "data"], timeout_s=1800)
        return Side("loop-xfs", "loop", top / "data", below=[top / "data"], own=growth(top))

    def loop_btrfs(self) -> Side:
        top = self.sandbox.loop_filesystem("l-btrfs", ["mkfs.btrfs", "-q"], self.loop_size)
        run(["btrfs", "subvolume", "create", top / "golden"])
        give_to_postgres(top / "golden")
        self.copy(top / "golden")
        run(["btrfs", "subvolume", "snapshot", top / "golden", top / "data"])
        return Side("loop-btrfs", "loop", top / "data", below=[top / "data"], own=growth(top))

    def loop_cowfs(self) -> Side:
        top = self.sandbox.loop_filesystem("l-cowfs", ["mkfs.ext4", "-q", "-F"], self.loop_size)
        cowfs = Cowfs(self.sandbox, self.binary, top / "store")
        cowfs("init")
        cowfs("import", self.golden, "--as", "main", timeout_s=1800)
        cowfs("branch", "create", "fork", "--from", "main")
        return self.mounted(cowfs, "loop-cowfs", "loop", "fork")


def disk_bytes(top: Path) -> int:
    """What a directory takes on the disk."""
    return int(run(["du", "-s", "--block-size=1", top]).stdout.split()[0])


def growth(top: Path):
    """How much more of a filesystem is in use than now."""
    def used() -> int:
        run(["sync", "-f", top])
        found = os.statvfs(top)
        return (found.f_blocks - found.f_bfree) * found.f_frsize
    before = used()
    return lambda: used() - before


def pid_of(program: str, word: Path):
    """The process of that name with that word in its command line, or None."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(program.encode()) and str(word).encode() in words:
            return int(entry.name)
    return None


def make_golden(sandbox: Sandbox, postgres: Postgres, scale: int, fio_bytes: int) -> Path:
    """A stopped cluster with pgbench's tables and a file for fio, as an import finds it."""
    data = sandbox.directory("golden")
    cluster = Cluster(sandbox, postgres, "golden", data)
    cluster.initdb()
    cluster.start(max_wal_size="4GB")
    # Frozen, so that no later scan has to write hint bits.
    cluster.pgbench("-i", "-q", "-s", scale)
    cluster.sql("CREATE EXTENSION pg_prewarm; VACUUM FREEZE; CHECKPOINT")
    cluster.stop()
    bench = data / "bench"
    bench.mkdir()
    with open(bench / "fio", "wb") as file:
        for _ in range(fio_bytes >> 20):
            file.write(random.randbytes(1 << 20))
        os.fsync(file.fileno())
    give_to_postgres(bench)
    give_to_postgres(bench / "fio")
    if not any(data.glob("PG_VERSION")):
        raise Failure(f"{data} is no cluster")
    return data
