"""A store on which processes are told to die, and what must be on it afterwards.

A step is a command, or a recorder at work on a mount. As soon as a process has died where it was told to
(src/io/crash.rs notes that in a log), the step ends with `Crashed`, and everything that still runs is killed.
"""

from __future__ import annotations

import copy
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

from crash.files import tree_digest
from crash.hostfs import kill_and_wait
from crash.model import Model, read_tree
from crash.oplog import PAGE, payload, read_log
from harness import Failure, check, tail

SCRIPTS = Path(__file__).resolve().parent.parent
PATIENCE_S = 30
FILLED_BYTES = 8 * PAGE
#: What a server leaves in its data directory and a fork must not have; the last is a socket's lock file.
SERVER_FILES = ("postmaster.pid", "postmaster.opts", ".s.PGSQL.5432", ".s.PGSQL.5432.lock")


def _write_over(path: Path, data: bytes) -> None:
    with open(path, "r+b", buffering=0) as file:
        file.write(data)


class Crashed(Exception):
    """The process that was told to die has died. The command that was running may have returned 0 all the same."""

    def __init__(self, code: int | None = None):
        super().__init__()
        self.code = code


@dataclass
class Branch:
    """What a branch must hold."""

    model: Model
    #: None: a command that makes or removes it was cut short.
    exists: bool | None = True
    #: Whether the files of the server are to be there, if the branch had any.
    has_server: bool = False
    #: Contents that are known to the byte, of a branch without recorders.
    digest: str = ""
    forked_from: str = ""
    #: What it holds if a command that exchanges its contents has not happened (or has), where that was cut short.
    otherwise: Model | None = None


@dataclass
class Snapshot:
    """What a snapshot must hold."""

    model: Model
    #: None: a command that makes or removes it was cut short.
    exists: bool | None = True


@dataclass
class Known:
    """What a stage knows of its store: goes along when the store is copied."""

    branches: dict = field(default_factory=dict)
    #: By "BRANCH@NAME".
    snapshots: dict = field(default_factory=dict)
    #: Names of which exactly one must exist: a rename was cut short.
    either: tuple = ()
    steps: int = 0


class Stage:
    """One store with its mounts; `arm` says where processes are to die."""

    DIRS = ["d0", "d1"]

    def __init__(self, binary: Path, root: Path, environment: dict, seed: int, known: Known | None = None):
        self.binary, self.root, self.seed = binary, root, seed
        self.store, self.crash_log = root / "store", root / "crash.log"
        self.known = known or Known()
        self.mounts: dict = {}
        self.arm = ""
        self.extra = environment
        self.children: list = []

    # ---- commands

    def environment(self, arm: str) -> dict:
        return {**os.environ, **self.extra, "COWFS_STORE": str(self.store), "COWFS_CRASH_AT": arm,
                "COWFS_CRASH_LOG": str(self.crash_log)}

    def command(self, *args, ok: tuple = (0,), limit_bytes: int = 0) -> str:
        """Runs a command in which a process may die; `limit_bytes` is the longest file it may write."""
        def limit() -> None:
            if limit_bytes:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        argv = [str(self.binary), *map(str, args)]
        try:
            done = subprocess.run(argv, env=self.environment(self.arm), capture_output=True, text=True, timeout=90,
                                  check=False, restore_signals=False, preexec_fn=limit)
        except subprocess.TimeoutExpired as error:
            raise Failure(f"{' '.join(argv)} hangs; died: {self.death() or 'nobody'}") from error
        self.look(done.returncode)
        check(done.returncode in ok, f"{' '.join(argv)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def ask(self, *args, ok: tuple = (0,)):
        """Runs a command in which nobody dies; gives its JSON."""
        argv = [str(self.binary), *map(str, args), "--json"]
        done = subprocess.run(argv, env=self.environment(""), capture_output=True, text=True, timeout=90, check=False)
        check(done.returncode in ok, f"{' '.join(argv)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return json.loads(done.stdout)

    def death(self) -> str:
        """The point at which a process has died, if one has."""
        try:
            lines = self.crash_log.read_text().splitlines()
        except FileNotFoundError:
            return ""
        return next((line.split()[2] for line in lines if line.startswith("died ")), "")

    def look(self, code: int | None = None) -> None:
        if self.death():
            raise Crashed(code)

    def passed(self) -> dict:
        """After a trace: the points, and how often the process that passed each the most did so."""
        counts: dict = {}
        for line in self.crash_log.read_text().splitlines():
            _, pid, point = line.split()
            counts[pid, point] = counts.get((pid, point), 0) + 1
        most: dict = {}
        for (_, point), count in counts.items():
            most[point] = max(most.get(point, 0), count)
        return most

    # ---- steps

    def mount(self, name: str) -> Path:
        where = self.root / f"m-{name}"
        where.mkdir(exist_ok=True)
        self.mounts[name] = where
        self.command("mount", name, where)
        branch = self.known.branches[name]
        if branch.forked_from:
            branch.has_server = False
        return where

    def unmount(self, name: str) -> None:
        where = self.mounts[name]
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                self.command("unmount", where)
                break
            except Failure:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        while self._status(name) not in ("not_mounted", "dead"):
            self.look()
            check(time.monotonic() < deadline, f"the process that served {name} does not end")
            time.sleep(0.02)
        self.look()
        del self.mounts[name]

    def _status(self, name: str) -> str:
        return self.ask("status", name)["state"]

    def settle(self, *names: str, packs: bool = False) -> None:
        """Waits until nothing is frozen any more, and no merge is owed; if `packs`, no pack either."""
        deadline = time.monotonic() + PATIENCE_S
        owed = ("waiting_layers", "waiting_merges", *(["waiting_packs"] if packs else []))
        for name in names:
            if packs:
                # Which has the background look at once.
                self.command("compaction", "resume", name)
            while (server := self.ask("status", name).get("server")) is None or any(
                    server["compaction"][what] for what in owed):
                self.look()
                check(time.monotonic() < deadline, f"the layers of {name} are not finalized")
                time.sleep(0.02)
        self.look()

    def work(self, name: str, operations: int) -> None:
        """Has a recorder do so many operations, and the model learn of them."""
        self.start_work(name, operations).finish()

    def start_work(self, name: str, operations: int | None = None) -> "Work":
        self.known.steps += 1
        work = Work(self, name, operations, self.seed * 1000 + self.known.steps)
        self.children.append(work)
        return work

    def fill(self, name: str) -> str:
        """Writes pages at the beginning of a file; returns which."""
        path, file = max(read_tree(self.mounts[name], self.DIRS).items(), key=lambda item: len(item[1].data))
        operation = ("write", path, file.ino, 0, FILLED_BYTES, "filled", "buffered")
        self._change(name, operation, lambda: _write_over(self.mounts[name] / path, payload("filled", FILLED_BYTES)))
        return path

    def shorten(self, name: str, path: str) -> None:
        """Cuts a file of filled pages in the midst of one."""
        file = self.mounts[name] / path
        size = FILLED_BYTES // 2 + 1
        self._change(name, ("truncate", path, file.stat().st_ino, size), lambda: os.truncate(file, size))

    def _change(self, name: str, operation: tuple, action: Callable) -> None:
        """Does one operation, of which the model learns."""
        model = self.known.branches[name].model
        model.replay([(0, (-1, *operation))])
        try:
            action()
        except OSError as error:
            self.look()
            raise Failure(f"{operation[0]}: {error}") from error
        model.replay([(0, (-1, "ok"))])

    def fork(self, parent: str, child: str, model: Model | None = None) -> None:
        source = self.known.branches[parent]
        twin = Branch((model or source.model).copy(), None, source.has_server, forked_from=parent)
        self.known.branches[child] = twin
        try:
            self.command("branch", "create", child, "--from", parent)
        except Crashed as crashed:
            # The command may go on without the server that died.
            twin.exists = True if crashed.code == 0 else None
            raise
        twin.exists = True

    def create(self, name: str) -> None:
        self.known.branches[name] = branch = Branch(Model.of([], {}, True), None)
        self.command("branch", "create", name, "--empty")
        branch.exists = True

    def delete(self, name: str) -> None:
        self.known.branches[name].exists = None
        self.command("branch", "delete", name)
        self.known.branches[name].exists = False

    def rename(self, old: str, new: str) -> None:
        branch = self.known.branches[old]
        self.known.branches[new] = copy.copy(branch)
        branch.exists = self.known.branches[new].exists = None
        self.known.either = (old, new)
        self.command("branch", "rename", old, new)
        self.known.either = ()
        branch.exists, self.known.branches[new].exists = False, True

    def snapshot(self, name: str) -> None:
        """Takes the snapshot "BRANCH@NAME"."""
        model = self.known.branches[name.split("@")[0]].model
        self.known.snapshots[name] = taken = Snapshot(model.copy(), None)
        self.command("snapshot", "create", name)
        taken.exists = True

    def forget(self, name: str) -> None:
        """Deletes a snapshot."""
        self.known.snapshots[name].exists = None
        self.command("snapshot", "delete", name)
        self.known.snapshots[name].exists = False

    def exchange(self, name: str, model: Model, *command: str) -> Model:
        """A command after which a branch, not mounted, has other contents; returns what it had."""
        branch = self.known.branches[name]
        before, branch.model = branch.model, model.copy()
        branch.otherwise = before.copy()
        self.command(*command)
        branch.otherwise = None
        return before

    def restore(self, name: str, snapshot: str) -> Model:
        return self.exchange(name, self.known.snapshots[f"{name}@{snapshot}"].model, "branch", "restore", name, snapshot)

    def undo(self, name: str, model: Model) -> Model:
        return self.exchange(name, model, "undo", "--branch", name)

    def bring_in(self, source: Path, name: str, fails_beyond: int = 0) -> None:
        """Imports a tree; with `fails_beyond` no file may become longer than that, and the import fails."""
        branch = Branch(Model.of([], {}, True), None, digest=tree_digest(source))
        self.known.branches[name] = branch
        self.command("import", "--any", source, "--as", name, "--jobs", 1, ok=(1,) if fails_beyond else (0,),
                     limit_bytes=fails_beyond)
        branch.exists = not fails_beyond

    def seal(self, name: str) -> None:
        """Asks the serving process to seal the open layer; there is no command for that."""
        number = self.ask("branch", "show", name)["id"]
        message = json.dumps({"request": "seal"}).encode()
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(PATIENCE_S)
                client.connect(str(self.store / "run" / f"{number}.sock"))
                client.sendall(struct.pack("<I", len(message)) + message)
                answer = client.recv(4096)
        except OSError as error:
            self.look()
            raise Failure(f"seal: {error}") from error
        self.look()
        check(b"sealed" in answer, f"seal: {answer!r}")

    def branch_off_snapshots(self) -> None:
        """Makes a branch of each snapshot: it is judged, and goes on, like any other."""
        for name, snapshot in self.known.snapshots.items():
            if snapshot.exists:
                parent = name.split("@")[0]
                child = f"of-{name.replace('@', '-')}"
                self.command("branch", "create", child, "--from", name)
                self.known.branches[child] = Branch(snapshot.model.copy(), forked_from=parent)
                self.known.branches[child].has_server = self.known.branches[parent].has_server

    # ---- the end of everything

    def kill_all(self) -> None:
        """SIGKILL to every process that serves this store, and to its recorders."""
        for work in self.children:
            work.kill()
        for pid in self._servers():
            kill_and_wait(pid)
        mounted = {line.split()[1] for line in open("/proc/mounts")}
        for where in self.root.glob("m-*"):
            while str(where) in mounted:
                subprocess.run(["umount", "-l", where], capture_output=True, check=False)
                mounted = {line.split()[1] for line in open("/proc/mounts")}
        self.mounts.clear()

    def learn_all(self) -> None:
        """After a crash: the models learn what the recorders had done."""
        for work in list(self.children):
            work.learn()

    def _servers(self) -> list:
        found = []
        for entry in Path("/proc").iterdir():
            try:
                line = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            except OSError:
                continue
            if b"--ready-on-stdout" in line and f"{self.root}/".encode() in line:
                found.append(int(entry.name))
        return found

    # ---- judging

    def judge(self, name: str) -> None:
        """Compares a mounted branch with what is known of it; from then on exactly this must be there."""
        branch, where = self.known.branches[name], self.mounts[name]
        if branch.digest:
            check(tree_digest(where) == branch.digest, f"{name}: its contents differ from what was imported")
            return
        if not branch.model.dirs:
            return
        try:
            found = read_tree(where, self.DIRS)
        except OSError as error:
            raise Failure(f"{name}: cannot be read: {error}") from error
        wrong = branch.model.judge(found)
        if wrong and branch.otherwise:
            wrong = branch.otherwise.judge(found)
        branch.otherwise = None
        check(not wrong, f"{name}: {len(wrong)} findings:\n    " + "\n    ".join(wrong[:8]))
        there = [file for file in SERVER_FILES if os.path.lexists(where / file)]
        wanted = list(SERVER_FILES) if branch.has_server else []
        check(there == wanted, f"{name}: of the server's files there are {there}, not {wanted}")
        branch.model = Model.of(self.DIRS, found, True)

    def names_agree(self) -> None:
        """Compares the list of branches; what may be either is known from then on."""
        there = {branch["name"] for branch in self.ask("branch", "list")}
        if self.known.either:
            check(len(there & set(self.known.either)) == 1, f"of {self.known.either} there are {there}")
        for name, branch in self.known.branches.items():
            check(branch.exists is None or branch.exists == (name in there),
                  f"{name} is {'there' if name in there else 'gone'} and must not be")
            branch.exists = name in there
        unknown = there - set(self.known.branches)
        check(not unknown, f"nobody made {unknown}")

    def snapshots_agree(self) -> None:
        """The same for the list of snapshots."""
        there = {f"{found['branch']}@{found['snapshot']}" for found in self.ask("snapshot", "list")}
        for name, snapshot in self.known.snapshots.items():
            check(snapshot.exists is None or snapshot.exists == (name in there),
                  f"snapshot {name} is {'there' if name in there else 'gone'} and must not be")
            snapshot.exists = name in there
        unknown = there - set(self.known.snapshots)
        check(not unknown, f"nobody took {unknown}")

    def alive(self) -> list:
        return [name for name, branch in self.known.branches.items() if branch.exists]

    def digests(self) -> dict:
        """One digest per branch, each mounted for it."""
        found = {}
        for name in self.alive():
            found[name] = tree_digest(self.mount(name))
            self.judge(name)
            self.unmount(name)
        return found


class Work:
    """A recorder at work on a branch."""

    def __init__(self, stage: Stage, name: str, operations: int | None, seed: int):
        self.stage, self.branch = stage, stage.known.branches[name]
        self.log = stage.root / f"{name}-{stage.known.steps}.ops"
        self.log.touch()
        self.errors = self.log.with_suffix(".err")
        argv = [sys.executable, "-B", "-S", "-m", "crash.recorder", "--root", stage.mounts[name], "--log", self.log,
                "--seed", seed, *(["--operations", operations] if operations else []), *Stage.DIRS]
        with open(self.errors, "w", encoding="utf-8") as errors:
            self.process = subprocess.Popen([str(a) for a in argv], cwd=SCRIPTS, stderr=errors,
                                            stdout=subprocess.DEVNULL)

    def position(self) -> int:
        return self.log.stat().st_size

    def wait_until_at_work(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while self.position() == 0 and self.process.poll() is None:
            self.stage.look()
            check(time.monotonic() < deadline, "a recorder does not begin")
            time.sleep(0.01)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def finish(self, kill: bool = False) -> None:
        """Waits for its end, or ends it; the model learns what was done. Raises what went wrong."""
        if kill:
            self.kill()
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired as error:
            raise Failure(f"a recorder hangs; died: {self.stage.death() or 'nobody'}") from error
        self.learn()
        self.stage.look()
        found = [entry for _, entry in read_log(self.log) if entry[1] in ("error", "mismatch")]
        check(not found and "Traceback" not in tail(self.errors), f"{found[:2]} {tail(self.errors, 4)}")

    def learn(self) -> None:
        """Replays the log into the model. What returned while the server died need not have reached it: a close
        may succeed in the kernel alone."""
        if self in self.stage.children:
            self.stage.children.remove(self)
            entries = read_log(self.log)
            wrong = [entry for _, entry in entries if entry[1] == "mismatch"]
            check(not wrong, f"before the crash: {wrong[:2]}")
            last = max((position for position, entry in entries if entry[1] == "ok"), default=0)
            self.branch.model.replay(entries, complete_until=last - 1 if self.stage.death() else None)
