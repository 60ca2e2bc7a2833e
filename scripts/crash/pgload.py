"""The Postgres campaign: pgbench and ledger clients on a branch and a fork of it, a crash, and the reckoning."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from crash.hostfs import drop_mounts, kill_and_wait, remove_all_branches
from harness import Cluster, Cowfs, Failure, Postgres, Sandbox, check, give_to_postgres, newest_first
from ledger import LEDGER, RESTLESS, Recorder, check_ledger

CLIENTS, RECORDERS, SCALE = 4, 3, 2
#: With less than this part of the disk free, a new branch is begun and the old ones are deleted.
LEAST_FREE = 0.3


class Server:
    """A cluster on one branch with its load, and what its ledger must hold."""

    def __init__(self, campaign: "PostgresCampaign", branch: str, top: Path, at_least: dict, at_most: dict):
        self.campaign, self.branch, self.top = campaign, branch, top
        self.at_least, self.at_most = dict(at_least), dict(at_most)
        self.cluster = Cluster(campaign.sandbox, campaign.postgres, branch, top)
        self.recorders: list = []
        self.load, self.shared_memory = None, None

    def start(self) -> None:
        self.cluster.start(**RESTLESS)
        self.shared_memory = (self.top / "postmaster.pid").read_text().splitlines()[6].split()[1]

    def begin_load(self) -> None:
        argv = self.cluster.pgbench_argv("-n", "-c", CLIENTS, "-j", 1, "-T", 10**6)
        with open(self.campaign.sandbox.logs / f"pgbench-{self.branch}.log", "w", encoding="utf-8") as log:
            self.load = subprocess.Popen(argv, stdout=log, stderr=log)
        self.recorders = [Recorder(self.cluster, self.campaign.client_number()) for _ in range(RECORDERS)]
        for recorder in self.recorders:
            recorder.start()

    def complaints(self) -> list:
        """What went wrong while nothing was broken yet."""
        found = [r.error for r in self.recorders if r.error]
        if self.load is not None and self.load.poll() is not None:
            found.append(f"{self.branch}: pgbench ended by itself")
        return found

    def acknowledged(self) -> dict:
        return {**self.at_least, **{r.number: r.acknowledged for r in self.recorders}}

    def sent(self) -> dict:
        return {**self.at_most, **{r.number: r.sent for r in self.recorders}}

    def end_load(self) -> None:
        """Ends the clients and keeps what they know."""
        for recorder in self.recorders:
            recorder.psql.kill()
            recorder.end()
        if self.load is not None:
            self.load.kill()
            self.load.wait()
        self.at_least, self.at_most = self.acknowledged(), self.sent()
        self.campaign.commits += sum(recorder.acknowledged for recorder in self.recorders)
        self.recorders, self.load = [], None

    def kill(self) -> None:
        """SIGKILL to the postmaster and its children, and no memory segment stays behind."""
        pid = self.cluster.pid
        if pid is None:
            return
        self.cluster.pid = None
        os.kill(pid, signal.SIGSTOP)  # no new children, no restart after a child's end
        for child in children_of(pid):
            kill_and_wait(child)
        kill_and_wait(pid)
        subprocess.run(["ipcrm", "-m", self.shared_memory], capture_output=True, check=False)

    def reckon(self) -> None:
        """After a crash: recovery, ledger, sums, indexes."""
        (self.top / "postmaster.pid").unlink(missing_ok=True)
        for left in self.cluster.socket.iterdir():  # /run is empty after a boot
            left.unlink()
        self.start()
        found = check_ledger(self.cluster, self.at_least, self.at_most)
        self.at_least = self.at_most = found
        self.cluster.tpcb_sums()
        self.cluster.amcheck()


def children_of(parent: int) -> list:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[1]) == parent:
                found.append(int(entry.name))
    return found


class PostgresCampaign:
    """One branch with a database after another; `crash` is hostfs.PowerCut or hostfs.Kill."""

    def __init__(self, sandbox: Sandbox, cowfs: Cowfs, crash, rng):
        self.sandbox, self.cowfs, self.crash, self.rng = sandbox, cowfs, crash, rng
        self.postgres = Postgres(newest_first()[0])
        self.parent: Server | None = None
        self.servers: list = []
        self.pids: dict = {}
        self.clients = self.generation = self.forks = self.commits = 0
        sandbox.on_exit(self._abandon)

    def facts(self) -> dict:
        return {"forks": self.forks, "recorded commits": self.commits}

    def client_number(self) -> int:
        self.clients += 1
        return self.clients

    def begin_anew(self) -> None:
        self.generation += 1
        remove_all_branches(self.cowfs)
        branch = f"pg-{self.generation}"
        top = self.sandbox.directory(f"m-{branch}")
        self.cowfs("branch", "create", branch, "--empty")
        self.cowfs.mount(branch, top)
        give_to_postgres(top)
        top.chmod(0o700)
        self.parent = Server(self, branch, top, {}, {})
        self.servers = [self.parent]
        self.parent.cluster.initdb()
        self.parent.start()
        self.parent.cluster.pgbench("-i", "-q", "-s", SCALE)
        self.parent.cluster.sql(f"CREATE EXTENSION amcheck; {LEDGER}")
        self.crash.settle()

    def round(self, number: int) -> str:
        try:
            if self.parent is not None and self._is_nearly_full():
                self._retire()
            if self.parent is None:
                self.begin_anew()
            return self._round(number)
        except BaseException as error:
            try:
                self._abandon()
                self.crash.recover(self.cowfs)
            except Failure as further:
                raise Failure(f"{error}\n    and then, clearing up: {further}") from error
            raise

    def _is_nearly_full(self) -> bool:
        """Whether the chain of forks has grown so long that the disk has no room for much more of it."""
        disk = os.statvfs(self.cowfs.store)
        return disk.f_bavail < disk.f_blocks * LEAST_FREE

    def _retire(self) -> None:
        self.parent.cluster.stop()
        self.cowfs.unmount(self.parent.branch)
        self.parent, self.servers = None, []

    def _abandon(self) -> None:
        """Takes everything down, whatever state a failed round left it in."""
        for server in self.servers:
            server.end_load()
            server.kill()
        for branch in list(self.cowfs.mounts):
            # A disk whose power was cut cannot be asked any more.
            pid = self.pids.get(branch) or self.cowfs.serving_pid(branch)
            if pid:
                kill_and_wait(pid)
        drop_mounts(self.cowfs)
        self.parent, self.servers = None, []

    def _round(self, number: int) -> str:
        rng, self.pids = self.rng, {}
        self.parent.begin_load()
        time.sleep(rng.uniform(0.5, 2.0))
        child = command = None
        if rng.random() < 0.75:
            child, command = self._fork(number, cut_short=rng.random() < 0.25)
        if command is None:
            time.sleep(rng.choice([0, rng.uniform(0, 0.05), rng.uniform(0, 1.5)]))
        wrong = [line for server in self.servers for line in server.complaints()]
        check(not wrong, "before the crash: " + "; ".join(wrong))
        self.pids = {branch: self.cowfs.serving_pid(branch) for branch in self.cowfs.mounts}
        before = [server.acknowledged() for server in self.servers]
        self.crash.strike(list(self.pids.values()))
        for server, acknowledged in zip(self.servers, before):
            server.kill()
            server.end_load()
            if self.crash.host_may_lie:
                server.at_least = acknowledged
        if command is not None:
            self._finish(command, child)
        self.crash.recover(self.cowfs)
        self.cowfs("check")
        recorded = self._reckon_all(child, command is None)
        return f"{recorded} recorded rows, {'no fork' if child is None else 'fork'}" \
               f"{' cut short' if command is not None else ''}"

    def _fork(self, number: int, cut_short: bool) -> tuple:
        """A fork and, unless the crash comes in its midst, a server with a load of its own on it."""
        name = f"{self.parent.branch.split('.')[0]}.{number}"
        top = self.sandbox.directory(f"m-{name}")
        before = self.parent.acknowledged()
        self.forks += 1
        if cut_short:
            argv = [str(self.cowfs.binary), "branch", "create", name, "--from", self.parent.branch]
            command = subprocess.Popen(argv, env=self.cowfs.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(self.rng.uniform(0, 0.02))
            # What was sent is known only after the crash; _finish fills it in.
            return Server(self, name, top, before, {}), command
        self.cowfs("branch", "create", name, "--from", self.parent.branch)
        child = Server(self, name, top, before, self.parent.sent())
        if self.rng.random() < 0.7:
            self.servers.append(child)
            self.cowfs.mount(name, top)
            child.start()
            child.begin_load()
            time.sleep(self.rng.uniform(0.1, 1.0))
        return child, None

    def _finish(self, command: subprocess.Popen, child: Server) -> None:
        try:
            command.wait(timeout=60)
        except subprocess.TimeoutExpired as error:
            command.kill()
            command.wait()
            raise Failure("the fork command hangs after the crash") from error
        child.at_most = dict(self.parent.at_most)

    def _reckon_all(self, child, must_exist: bool) -> int:
        self.cowfs.mount(self.parent.branch, self.parent.top)
        self.parent.reckon()
        recorded = sum(self.parent.at_least.values())
        self.servers = [self.parent]
        if child is None:
            return recorded
        there = any(b["name"] == child.branch for b in self.cowfs.json("branch", "list"))
        check(there or not must_exist, f"fork {child.branch} had returned and is gone")
        if not there:
            return recorded
        self.cowfs.mount(child.branch, child.top)
        self.servers.append(child)
        child.reckon()
        recorded += sum(child.at_least.values())
        # Now and then the child is what goes on, so that chains grow.
        over = self.parent if self.rng.random() < 0.3 else child
        over.cluster.stop()
        self.cowfs.unmount(over.branch)
        self.cowfs("branch", "delete", over.branch, "--purge")
        self.cowfs("gc")
        self.servers.remove(over)
        self.parent = self.servers[0]
        return recorded


