"""Where a suite runs: the host's own filesystem, a fresh branch, a fork of it, a branch that is being forked."""

from __future__ import annotations

import threading
from pathlib import Path

from harness import Cowfs, Failure, Sandbox

HOST, BRANCH, FORK, FORKED = "host", "branch", "fork", "while forked"


class Forker(threading.Thread):
    """Forks a mounted branch every second and deletes the forks; both must always work."""

    def __init__(self, cowfs: Cowfs, branch: str):
        super().__init__(daemon=True)
        self.cowfs, self.branch = cowfs, branch
        self.forks, self.error = 0, ""
        self.ending = threading.Event()

    def run(self) -> None:
        try:
            while not self.ending.wait(1.0):
                self.forks += 1
                self.cowfs("branch", "create", f"{self.branch}-{self.forks}", "--from", self.branch)
                if self.forks > 3:
                    self.cowfs("branch", "delete", f"{self.branch}-{self.forks - 3}")
        except Failure as error:
            self.error = str(error)

    def end(self) -> None:
        self.ending.set()
        self.join(120)


class Places:
    """Makes them for one suite; its branches are called after it."""

    def __init__(self, sandbox: Sandbox, cowfs: Cowfs):
        self.sandbox, self.cowfs = sandbox, cowfs
        self.made = 0

    def make(self, suite: str, place: str) -> Path:
        """An empty directory (on FORK: one with what the suite left on BRANCH) that everybody may enter."""
        slug = self.branch_of(suite, place)
        # Short: the path of a unix socket may have 107 bytes, and suites nest.
        self.made += 1
        where = self.sandbox.directory(f"p{self.made}", 0o755)
        if place == HOST:
            return where
        if place == FORK:
            self.cowfs("branch", "create", slug, "--from", f"{suite}-{BRANCH}")
            self.cowfs.mount(slug, where)
        else:
            self.cowfs("branch", "create", slug, "--empty")
            self.cowfs.mount(slug, where)
            where.chmod(0o755)
        return where

    def branch_of(self, suite: str, place: str) -> str:
        return f"{suite}-{place.replace(' ', '-')}"

    def leave(self, suite: str, place: str) -> None:
        branch = self.branch_of(suite, place)
        if branch in self.cowfs.mounts:
            self.cowfs.unmount(branch)
