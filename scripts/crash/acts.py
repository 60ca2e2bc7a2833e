"""What scripts/crash-points does while a process may die: the states it begins with, and the acts."""

from __future__ import annotations

import os
import random
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from crash.model import Model, read_tree
from crash.oplog import read_log
from crash.stage import SERVER_FILES, Crashed, Stage
from harness import Failure, check, run

IMPORTED_FILES, IMPORTED_BYTES = 24, 30_000
#: Longer than an import that is to fail may write; a hole, so that nobody has to copy it.
LONG_FILE_BYTES, SHORT_FILES_BYTES = 9 << 20, 8 << 20
#: Whether a command that dies there has happened. Elsewhere both is allowed.
HAPPENED = {
    **dict.fromkeys(("fork.offline_planned", "create.root_written", "create.log_settled", "import.locked", "import.noted", "import.begun", "import.dirs_made",
                     "import.file_created", "import.file_copied", "import.copied", "import.synced",
                     "import.index_written", "import.index_renamed", "import.index_durable", "import.undone",
                     "import.forgotten", "delete.committed", "delete.tidied", "delete.ended"), False),
    **dict.fromkeys(("fork.committed", "fork.swapped", "fork.released", "fork.offline_committed", "create.committed",
                     "create.marked", "import.published", "import.ended", "delete.locked"), True),
}


def die_at(stage: Stage, arm: str, action: Callable) -> None:
    """Has a process die in an action, and takes note of what is left. The store is not touched."""
    stage.arm = arm
    try:
        action()
    except Crashed:
        pass
    else:
        raise Failure(f"nobody came to {arm}")
    finally:
        stage.arm = ""
    after_death(stage)
    stage.crash_log.unlink()


def after_death(stage: Stage) -> None:
    stage.kill_all()
    stage.learn_all()
    happened = HAPPENED.get(stage.death())
    for branch in stage.known.branches.values():
        branch.exists = happened if branch.exists is None else branch.exists
    stage.names_agree()
    stage.snapshots_agree()


# ---- states to begin with


def plain(stage: Stage) -> None:
    """One branch with files, in order, not mounted."""
    stage.command("init")
    stage.create("main")
    where = stage.mount("main")
    for directory in Stage.DIRS:
        (where / directory).mkdir()
    for name in SERVER_FILES:
        (where / name).write_text("1\n")
    (where / SERVER_FILES[2]).unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(where / SERVER_FILES[2]))
    stage.known.branches["main"].has_server = True
    stage.known.branches["main"].model = Model.of(Stage.DIRS, read_tree(where, Stage.DIRS), True)
    stage.work("main", 50)
    stage.unmount("main")


def forked(stage: Stage) -> None:
    """And a fork of it; both have changed since."""
    stage.mount("main")
    stage.fork("main", "kid")
    stage.work("main", 20)
    stage.mount("kid")
    stage.work("kid", 20)
    stage.settle("main", "kid")
    stage.unmount("kid")
    stage.unmount("main")


def deep(stage: Stage) -> None:
    """A chain whose next layer calls for a merged index."""
    stage.mount("main")
    for number in range(8):
        stage.work("main", 4)
        stage.fork("main", f"c{number}")
        stage.delete(f"c{number}")
    stage.settle("main")
    stage.unmount("main")


def cut(stage: Stage) -> None:
    """A file of a lower layer is shorter than any record says."""
    stage.mount("main")
    stage.work("main", 3)
    path = stage.fill("main")
    stage.fork("main", "below")
    stage.unmount("main")
    die_at(stage, "cut.done", lambda: shorten(stage, path))


def unmentioned(stage: Stage) -> None:
    """A data file that no record mentions."""
    die_at(stage, "file.sized:3", lambda: fork(stage))


def torn(stage: Stage) -> None:
    """The volatile log ends with half a frame. How many frames a write of 60 operations logs depends on what they are."""
    die_at(stage, "volatile.torn:25", lambda: write(stage, 8))


def frozen(stage: Stage) -> None:
    """A fork has happened; nobody has finalized what it froze, and the child was never mounted."""
    die_at(stage, "fork.swapped", lambda: fork(stage))


def half_finalized(stage: Stage) -> None:
    die_at(stage, "finalize.journal_removed", lambda: fork(stage))


def half_merged(stage: Stage) -> None:
    die_at(stage, "merged.half_written", lambda: deepen_on(stage))


def garbage(stage: Stage) -> None:
    """Deleted branches, a branch that came to nothing, a dead import, and no reserve."""
    stage.delete("kid")
    stage.fork("main", "gone")
    stage.mount("gone")
    stage.work("gone", 10)
    stage.unmount("gone")
    stage.delete("gone")
    die_at(stage, "create.root_written", lambda: stage.create("stillborn"))
    die_at(stage, "import.file_copied:3", lambda: stage.bring_in(stage.root.parent.parent / "source", "copy"))
    (stage.store / "reserve").unlink()


#: Writes to the catalog until its log is long, and ends without the checkpoint that SQLite makes at a close.
LENGTHEN = """
import os, sqlite3, sys
catalog = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in ("PRAGMA wal_autocheckpoint = 0", "PRAGMA synchronous = OFF"):
    catalog.execute(statement).fetchall()
for _ in range(300):
    catalog.execute("UPDATE branches SET created_ms = created_ms + 1")
os._exit(0)
"""


def long_log(stage: Stage) -> None:
    """The log of the catalog is longer than a process may leave it behind."""
    run([sys.executable, "-c", LENGTHEN, stage.store / "catalog.sqlite"])
    # Fewer zeros are left after it than what calls for more.
    wal = stage.store / "catalog.sqlite-wal"
    os.truncate(wal, 24 * 300 + 4096 * 300 + 32 if wal.stat().st_size > 4120 * 300 + 32 else wal.stat().st_size)


# ---- acts


def write(stage: Stage, times: int = 1) -> None:
    stage.mount("main")
    for _ in range(times):
        stage.work("main", 60)
    stage.unmount("main")


def shorten(stage: Stage, path: str) -> None:
    stage.mount("main")
    stage.shorten("main", path)
    stage.unmount("main")


def fork(stage: Stage) -> None:
    stage.mount("main")
    stage.work("main", 15)
    stage.fork("main", "child")
    stage.work("main", 15)
    stage.mount("child")
    stage.work("child", 15)
    stage.settle("main", "child")
    stage.unmount("child")
    stage.unmount("main")


def fork_under_load(stage: Stage) -> None:
    stage.mount("main")
    work = stage.start_work("main")
    work.wait_until_at_work()
    time.sleep(0.1)
    begin = work.position()
    try:
        stage.fork("main", "child")
    finally:
        child = stage.known.branches["child"].model
        child.replay(read_log(work.log, work.position()), settle_until=begin)
    time.sleep(0.1)
    stage.settle("main")
    work.finish(kill=True)
    stage.unmount("main")


def fork_unmounted(stage: Stage) -> None:
    stage.fork("main", "child")
    stage.mount("child")
    stage.unmount("child")


def deepen(stage: Stage) -> None:
    stage.mount("main")
    stage.work("main", 6)
    stage.fork("main", "child")
    stage.settle("main")
    stage.settle("main", packs=True)
    stage.work("main", 6)
    stage.unmount("main")


def deepen_on(stage: Stage) -> None:
    """Adds layers until one calls for a merged index: a layer of few operations may come to nothing and not count."""
    stage.mount("main")
    for number in range(4):
        stage.work("main", 12)
        stage.fork("main", f"deeper{number}")
        stage.settle("main")
    stage.unmount("main")


def pause(stage: Stage) -> None:
    """What sealed layers leave waiting during a pause is done after it, the merge that they call for included."""
    stage.mount("main")
    stage.work("main", 6)
    stage.command("compaction", "pause", "main")
    stage.fork("main", "child")
    stage.work("main", 10)
    stage.seal("main")
    stage.work("main", 6)
    stage.command("compaction", "resume", "main")
    stage.settle("main")
    stage.work("main", 6)
    stage.unmount("main")


def pause_and_unmount(stage: Stage) -> None:
    """A pause that nobody ends: the child's process finalizes for itself, the parent's at its unmount."""
    stage.mount("main")
    stage.command("compaction", "pause", "main")
    stage.work("main", 6)
    stage.fork("main", "child")
    stage.mount("child")
    stage.settle("child")
    stage.work("main", 6)
    stage.work("child", 6)
    stage.unmount("child")
    stage.unmount("main")


def seal(stage: Stage) -> None:
    stage.mount("main")
    stage.work("main", 10)
    stage.seal("main")
    stage.work("main", 10)
    stage.settle("main")
    stage.unmount("main")


def recover(stage: Stage) -> None:
    """Mounts and unmounts whatever is there, and collects."""
    for name in stage.alive():
        stage.mount(name)
        stage.settle(name)
        stage.unmount(name)
    stage.command("gc", "--now")


def child_first(stage: Stage) -> None:
    """The child's process finalizes the layer that the parent's froze."""
    stage.mount("child")
    stage.work("child", 15)
    stage.mount("main")
    stage.work("main", 10)
    stage.settle("child", "main")
    stage.unmount("child")
    stage.unmount("main")


def names(stage: Stage) -> None:
    stage.create("fresh")
    stage.rename("kid", "other")
    stage.delete("other")


def go_back(stage: Stage) -> None:
    """Snapshots of a mounted and of an unmounted branch; a restore, which is taken back; a reset; nothing is left over."""
    stage.mount("main")
    stage.work("main", 10)
    stage.snapshot("main@live")
    stage.work("main", 10)
    stage.settle("main")
    stage.unmount("main")
    stage.snapshot("main@still")
    stage.mount("main")
    stage.work("main", 10)
    stage.unmount("main")
    before = stage.restore("main", "live")
    stage.undo("main", before)
    stage.exchange("kid", stage.known.snapshots["main@still"].model, "branch", "reset", "kid", "--to", "main@still")
    stage.forget("main@live")
    stage.mount("kid")
    stage.work("kid", 10)
    stage.unmount("kid")
    stage.command("gc", "--now")


def collect(stage: Stage) -> None:
    stage.command("gc", "--now")


def bring_in(stage: Stage) -> None:
    stage.bring_in(stage.root.parent.parent / "source", "copy")


def bring_in_too_much(stage: Stage) -> None:
    stage.bring_in(stage.root.parent.parent / "source", "copy", fails_beyond=SHORT_FILES_BYTES)


def checksum(stage: Stage) -> None:
    stage.command("check", "--add-checksums", "--read-data")


def rename(stage: Stage) -> None:
    stage.rename("main", "renamed")


def full(stage: Stage) -> None:
    """gc on a full disk gives the reserve up: nothing of the catalog's log is there to be overwritten."""
    with closing(sqlite3.connect(stage.store / "catalog.sqlite")) as catalog:
        catalog.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for log in stage.store.glob("catalog.sqlite-*"):
        log.unlink()
    filler = stage.root / "store" / "filler"
    with open(filler, "wb", buffering=0) as file:
        # Written back before the last try: until then ext4 counts more blocks as taken than it will take.
        for _ in range(8):
            try:
                while True:
                    file.write(bytes(1 << 12))
            except OSError:
                os.fsync(file.fileno())
    try:
        stage.command("gc")
    finally:
        filler.unlink()


@dataclass(frozen=True)
class Scenario:
    """An act, and the state it begins with."""

    name: str
    state: str
    act: Callable
    #: The store lies on a disk of its own of so many bytes.
    disk_bytes: int = 0


#: Each state, what it is made from, and how.
STATES = {"plain": (None, plain), "forked": ("plain", forked), "deep": ("plain", deep), "cut": ("forked", cut),
          "unmentioned": ("forked", unmentioned), "torn": ("forked", torn), "frozen": ("forked", frozen), "half-finalized": ("forked", half_finalized),
          "half-merged": ("deep", half_merged), "garbage": ("forked", garbage), "long-log": ("plain", long_log)}
SCENARIOS = [Scenario("write", "forked", write), Scenario("fork", "forked", fork),
             Scenario("fork-under-load", "forked", fork_under_load), Scenario("fork-unmounted", "torn", fork_unmounted),
             Scenario("deepen", "deep", deepen), Scenario("seal", "forked", seal),
             Scenario("pause", "deep", pause), Scenario("pause-and-unmount", "deep", pause_and_unmount),
             Scenario("recover-cut", "cut", recover), Scenario("recover-unmentioned", "unmentioned", recover),
             Scenario("recover-torn", "torn", recover),
             Scenario("recover-frozen", "frozen", recover), Scenario("recover-finalized", "half-finalized", recover),
             Scenario("recover-merged", "half-merged", recover), Scenario("child-first", "frozen", child_first),
             Scenario("names", "forked", names), Scenario("go-back", "forked", go_back),
             Scenario("collect", "garbage", collect),
             Scenario("import", "plain", bring_in), Scenario("failing-import", "plain", bring_in_too_much),
             Scenario("checksum", "forked", checksum), Scenario("long-log", "long-log", rename),
             Scenario("long-log-served", "long-log", write), Scenario("full", "forked", full, 24 << 20)]
#: What has to come to the same end however often it is interrupted.
CONVERGING = ("recover-cut", "recover-unmentioned", "recover-torn", "recover-frozen", "recover-finalized", "recover-merged", "collect")


def make_source(where: Path, rng: random.Random) -> None:
    """The tree that is imported."""
    for number in range(IMPORTED_FILES):
        directory = where / f"d{number % 5}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"s{number}").write_bytes(rng.randbytes(rng.randrange(IMPORTED_BYTES)))
    with open(where / "long", "wb") as file:
        file.truncate(LONG_FILE_BYTES)
