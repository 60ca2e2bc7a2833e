"""The file campaign: recorders at work on a branch and its forks, a crash, and the comparison with the model."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from crash.hostfs import drop_mounts, kill_and_wait, remove_all_branches
from crash.model import Model, read_tree
from crash.oplog import read_log
from harness import Cowfs, Failure, Sandbox, check, tail

SCRIPTS = Path(__file__).resolve().parent.parent
WORKERS = 3
CHILDREN_KEPT = 4


class Worker:
    """One recorder process with its log and model."""

    def __init__(self, sandbox: Sandbox, label: str, index: int, root: Path, model: Model, seed: int):
        self.model, self.root = model, root
        self.log = sandbox.logs / f"{label}-w{index}.ops"
        self.log.touch()
        self.errors = sandbox.logs / f"{label}-w{index}.err"
        argv = [sys.executable, "-B", "-m", "crash.recorder", "--root", root, "--log", self.log, "--seed", seed,
                "--letter", "ABCDEF"[index], *model.dirs]
        self.struck_at = None
        with open(self.errors, "w", encoding="utf-8") as errors:
            self.process = subprocess.Popen([str(a) for a in argv], cwd=SCRIPTS, stderr=errors,
                                            stdout=subprocess.DEVNULL)

    def wait_until_at_work(self) -> None:
        deadline = time.monotonic() + 20
        while self.position() == 0:
            check(time.monotonic() < deadline and self.process.poll() is None,
                  f"a recorder does not begin: {tail(self.errors)}")
            time.sleep(0.01)

    def position(self) -> int:
        return self.log.stat().st_size

    def signal(self, number: int) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)

    def end(self) -> None:
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGKILL)
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired as error:
            raise Failure(f"a recorder on {self.root} does not end: its mount hangs") from error

    def entries(self) -> list:
        return read_log(self.log)

    def complaints(self) -> list:
        """What went wrong before the crash: an operation that was refused, or a read of wrong bytes."""
        found = [f"{self.root.name}: {entry}" for position, entry in self.entries()
                 if entry[1] in ("error", "mismatch") and (self.struck_at is None or position <= self.struck_at)]
        if "Traceback" in tail(self.errors, 400):
            found.append(f"the recorder itself failed: {tail(self.errors, 6)}")
        return found


@dataclass
class Child:
    """A fork made in this round."""

    name: str
    models: list
    existed: bool = False
    interrupted: bool = False
    workers: list = field(default_factory=list)


class FileCampaign:
    """A branch with recorders on it; `crash` is hostfs.PowerCut or hostfs.Kill."""

    def __init__(self, sandbox: Sandbox, cowfs: Cowfs, crash, rng):
        self.sandbox, self.cowfs, self.crash, self.rng = sandbox, cowfs, crash, rng
        self.mount_point = sandbox.directory("m-files", 0o755)
        self.child_point = sandbox.directory("m-files-child", 0o755)
        self.dirs = [[f"w{i}a", f"w{i}b"] for i in range(WORKERS)]
        self.current, self.kept = "", {}
        self.generation = 0
        self.operations = self.forks = self.interrupted_forks = 0
        #: What a dying host had answered with success and not kept.
        self.lies: list = []
        self.workers: list = []
        #: Who served what when the crash came.
        self.pids: dict = {}
        #: Logs since the branch was made: a bug may need more than one round.
        self.history: list = []
        sandbox.on_exit(self.end_workers)

    def facts(self) -> dict:
        return {"operations": self.operations, "forks": self.forks, "forks cut short": self.interrupted_forks,
                "answered by the host while it was shut down, and not kept": self.lies}

    def end_workers(self) -> None:
        for worker in self.workers:
            worker.end()
        self.workers = []

    def begin_anew(self) -> None:
        """A new, empty branch; what a failed round left is not built upon."""
        self.generation += 1
        remove_all_branches(self.cowfs)
        self.kept = {}
        for log, errors in self.history:
            log.unlink()
            errors.unlink()
        self.history = []
        self.current = f"main-{self.generation}"
        self.cowfs("branch", "create", self.current, "--empty")

    def round(self, number: int) -> str:
        if not self.current:
            self.begin_anew()
        try:
            return self._round(number)
        except BaseException as error:
            self.current = ""
            self.history += [(worker.log, worker.errors) for worker in self.workers]
            self._keep_logs(number, error)
            try:
                self._abandon()
            except Failure as further:
                raise Failure(f"{error}\n    and then, clearing up: {further}") from error
            raise

    def _keep_logs(self, number: int, error: BaseException) -> None:
        """What the recorders did since the branch was made, below $COWFS_KEEP_LOGS."""
        if os.environ.get("COWFS_KEEP_LOGS"):
            kept = Path(os.environ["COWFS_KEEP_LOGS"]) / f"{self.sandbox.base.name}-round-{number}"
            kept.mkdir(parents=True, exist_ok=True)
            for log, _ in self.history:
                shutil.copy(log, kept)
            (kept / "finding").write_text(f"{error}\n")

    def _abandon(self) -> None:
        """Takes everything down, whatever state a failed round left it in."""
        self.end_workers()
        for branch in list(self.cowfs.mounts):
            # A disk whose power was cut cannot be asked any more.
            pid = self.pids.get(branch) or self.cowfs.serving_pid(branch)
            if pid:
                kill_and_wait(pid)
        self.crash.recover(self.cowfs)

    def _round(self, number: int) -> str:
        rng, self.pids = self.rng, {}
        self.cowfs.mount(self.current, self.mount_point)
        models = self._settled_models()
        self.workers = [self._worker(f"r{number}", i, self.mount_point, m) for i, m in enumerate(models)]
        workers = list(self.workers)
        for worker in workers:
            worker.wait_until_at_work()
        time.sleep(rng.uniform(0.2, 1.5))
        child = self._fork(number, workers) if rng.random() < 0.75 else None
        self._strike()
        wrong = [line for w in self.workers for line in w.complaints()]
        operations = 0
        for worker in self.workers:
            entries = worker.entries()
            operations += sum(1 for _, entry in entries if entry[1] == "ok")
            if self.crash.host_may_lie:
                worker.model.before = worker.model.copy()
                worker.model.before.replay(entries, settle_until=worker.struck_at)
            worker.model.replay(entries, complete_until=worker.struck_at)
        self.operations += operations
        self.crash.recover(self.cowfs)
        self._check_store()
        wrong += self._compare(self.current, self.mount_point, [w.model for w in workers], "parent")
        if child is not None:
            wrong += self._compare_child(child)
        wrong += self._old_child_unchanged()
        check(not wrong, f"{len(wrong)} findings:\n    " + "\n    ".join(wrong[:10]))
        self.history += [(worker.log, worker.errors) for worker in self.workers]
        self.workers = []
        self._turn_over(number, child)
        fork = "no fork" if child is None else f"fork {'cut short' if child.interrupted else 'done'}"
        return f"{operations} operations, {fork}{', child at work' if child and child.workers else ''}"

    # ---- before the crash

    def _worker(self, label: str, index: int, root: Path, model: Model) -> Worker:
        return Worker(self.sandbox, label, index, root, model, self.rng.randrange(2**31))

    def _settled_models(self) -> list:
        """Makes all that is there durable, so that each round begins from known ground."""
        for directory in (d for dirs in self.dirs for d in dirs):
            (self.mount_point / directory).mkdir(exist_ok=True)
        for top, _, names in os.walk(self.mount_point):
            for path in [*(os.path.join(top, n) for n in names), top]:
                fd = os.open(path, os.O_RDONLY)
                os.fsync(fd)
                os.close(fd)
        self.crash.settle()
        return [Model.of(dirs, read_tree(self.mount_point, dirs), self.crash.everything_completed)
                for dirs in self.dirs]

    def _fork(self, number: int, workers: list) -> Child:
        """Forks beside the load, with the load stopped, or so that the crash comes in its midst."""
        rng = self.rng
        child = Child(f"child-{self.generation}-{number}", [])
        quiet, cut_short = rng.random() < 0.4, rng.random() < 0.3
        if quiet:
            for worker in workers:
                worker.signal(signal.SIGSTOP)
        begins = [w.position() for w in workers]
        argv = [str(self.cowfs.binary), "branch", "create", child.name, "--from", self.current]
        command = subprocess.Popen(argv, env=self.cowfs.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if cut_short:
            time.sleep(rng.uniform(0, 0.02))
            child.interrupted = True
            self._strike()
        try:
            _, errors = command.communicate(timeout=60)
        except subprocess.TimeoutExpired as error:
            command.kill()
            command.wait()
            raise Failure(f"the fork command hangs, cut short: {cut_short}") from error
        child.existed = command.returncode == 0
        check(child.existed or cut_short, f"fork failed: {errors}")
        ends = [w.position() for w in workers]
        self.forks += 1
        self.interrupted_forks += cut_short
        for worker, begin, end in zip(workers, begins, ends):
            model = worker.model.copy()
            model.replay(read_log(worker.log, end), settle_until=begin)
            child.models.append(model)
        for worker in workers:
            worker.signal(signal.SIGCONT)
        if not cut_short and rng.random() < 0.75:
            self._work_on_child(number, child)
        if not cut_short:
            time.sleep(rng.choice([0, 0, rng.uniform(0, 0.01), rng.uniform(0, 1.0)]))
        return child

    def _work_on_child(self, number: int, child: Child) -> None:
        self.cowfs.mount(child.name, self.child_point)
        for index, model in enumerate(child.models):
            found = read_tree(self.child_point, model.dirs)
            wrong = model.judge(found)
            check(not wrong, "the child just forked: " + "; ".join(wrong[:5]))
            model.adopt(found)
            child.workers.append(self._worker(f"r{number}-child", index, self.child_point, model))
            self.workers.append(child.workers[-1])
        for worker in child.workers:
            worker.wait_until_at_work()

    def _strike(self) -> None:
        """The crash; only once per round, wherever it is called from."""
        if not self.cowfs.mounts or all(w.struck_at is not None for w in self.workers):
            return
        self.pids = {branch: self.cowfs.serving_pid(branch) for branch in self.cowfs.mounts}
        pids = list(self.pids.values())
        check(all(pids), f"a serving process ended by itself: {self.pids}")
        for worker in self.workers:
            worker.struck_at = worker.position()
        self.crash.strike(pids)
        for worker in self.workers:
            worker.end()

    # ---- after it

    def _check_store(self) -> None:
        try:
            self.cowfs("check")
        except Failure as error:
            raise Failure(f"cowfs check after the crash: {error}") from error

    def _compare(self, branch: str, where: Path, models: list, label: str) -> list:
        """Mounts and judges; the mount stays up only until the next `_turn_over`."""
        self.cowfs.mount(branch, where)
        wrong = []
        for model in models:
            try:
                found = read_tree(where, model.dirs)
            except OSError as error:
                wrong.append(f"{label}: cannot be read: {error}")
                continue
            lines = [f"{label}: {line}" for line in model.judge(found)]
            if lines and model.before is not None and not model.before.judge(found):
                # Only answers that came once the cut had begun were not kept: see PowerCut.
                self.lies += lines
            else:
                wrong += lines
        return wrong

    def _compare_child(self, child: Child) -> list:
        there = any(b["name"] == child.name for b in self.cowfs.json("branch", "list"))
        if not there:
            return [f"fork {child.name} had returned and is gone"] if child.existed else []
        child.existed = True
        wrong = self._compare(child.name, self.child_point, child.models, "child")
        self.kept[child.name] = tree_digest(self.child_point)
        self.cowfs.unmount(child.name)
        return wrong

    def _old_child_unchanged(self) -> list:
        """One child of an earlier round must be, to the byte, what it was when it was last judged."""
        others = [name for name in self.kept if name != self.current]
        if not others:
            return []
        name = self.rng.choice(others)
        self.cowfs.mount(name, self.child_point)
        digest = tree_digest(self.child_point)
        self.cowfs.unmount(name)
        return [] if digest == self.kept[name] else [f"{name}: has changed since its own round, and nobody wrote"]

    def _turn_over(self, number: int, child) -> None:
        """Now and then goes on with a child, removes old children, and collects."""
        self.cowfs.unmount(self.current)
        if number % 4 == 3 and child is not None and child.existed:
            if self.rng.random() < 0.5:
                self.cowfs("branch", "delete", self.current, "--purge")
            self.current = child.name
        self.kept.pop(self.current, None)
        while len(self.kept) > CHILDREN_KEPT:
            oldest = next(iter(self.kept))
            del self.kept[oldest]
            self.cowfs("branch", "delete", oldest, "--purge")
        if number % 5 == 4:
            self.cowfs("gc")


def tree_digest(root: Path) -> str:
    """One digest over names, sizes and bytes of everything below."""
    digest = hashlib.sha256()
    for top, dirs, names in os.walk(root):
        dirs.sort()
        for name in sorted(names):
            path = Path(top) / name
            digest.update(f"{path.relative_to(root)} {path.stat().st_size}\n".encode())
            if path.is_file():
                digest.update(path.read_bytes())
    return digest.hexdigest()


def run_rounds(report, rounds: int, prefix: str, one_round, keep_going: bool) -> int:
    """Runs the rounds as steps of the report; gives how many failed. Stops at the first unless told otherwise."""
    failed = 0
    for number in range(1, rounds + 1):
        try:
            report.step(f"{prefix} round {number}", lambda: one_round(number))
        except Failure:
            failed += 1
            if not keep_going:
                break
    return failed



