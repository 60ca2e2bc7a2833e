"""SIGKILL of commands halfway: fork, delete, gc, import, unmount. Each has happened completely or not at all."""

from __future__ import annotations

import os
import subprocess
import time

from crash.files import tree_digest
from crash.hostfs import drop_mounts, kill_and_wait
from harness import Cowfs, Failure, Sandbox, check

SOURCE_FILES, SOURCE_BYTES = 200, 40_000


class Interruptions:
    """A mounted branch that must never notice, and commands that are killed beside it."""

    TARGETS = ("fork", "fork-serving", "delete", "gc", "import", "unmount")

    def __init__(self, sandbox: Sandbox, cowfs: Cowfs, rng):
        self.sandbox, self.cowfs, self.rng = sandbox, cowfs, rng
        self.top = sandbox.directory("m-interrupt", 0o755)
        self.other = sandbox.directory("m-interrupt-other", 0o755)
        self.source = sandbox.directory("import-source", 0o755)
        self.took: dict = {}
        self.halfway = {target: 0 for target in self.TARGETS}
        self.digest = ""

    def set_up(self) -> None:
        for number in range(SOURCE_FILES):
            directory = self.source / f"d{number % 7}"
            directory.mkdir(exist_ok=True)
            (directory / f"s{number}").write_bytes(self.rng.randbytes(self.rng.randrange(SOURCE_BYTES)))
        self.cowfs("branch", "create", "kept", "--empty")
        self.cowfs.mount("kept", self.top)
        self.change()

    def facts(self) -> dict:
        return {"killed halfway": self.halfway}

    def change(self) -> None:
        """New content, so that no round compares with what a former one left."""
        for _ in range(5):
            fd = os.open(self.top / f"f{self.rng.randrange(30)}", os.O_CREAT | os.O_RDWR)
            os.pwrite(fd, self.rng.randbytes(self.rng.randrange(1, 30_000)), self.rng.randrange(50_000))
            os.close(fd)
        self.digest = tree_digest(self.top)

    def round(self, number: int) -> str:
        if not self.digest:
            self.set_up()
        target = self.TARGETS[number % len(self.TARGETS)]
        self.change()
        detail = getattr(self, "_" + target.replace("-", "_"))(f"b{number}")
        if "kept" not in self.cowfs.mounts:
            self.cowfs.mount("kept", self.top)
        check(tree_digest(self.top) == self.digest, f"{target}: the branch beside it has changed")
        self.cowfs("check")
        return f"{target}: {detail}"

    def _killed(self, target: str, *args: str, serving: bool = False) -> bool:
        """Runs a command and kills it somewhere on its way (or the serving process instead); whether it still
        ran. How long it takes is learnt from those that were left to finish."""
        usual = self.took.get(target, 0.02)
        pid = self.cowfs.serving_pid("kept")
        begin = time.monotonic()
        process = subprocess.Popen([str(self.cowfs.binary), *args], env=self.cowfs.env, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        try:
            process.wait(self.rng.uniform(0, usual * 1.1))
        except subprocess.TimeoutExpired:
            if serving:
                kill_and_wait(pid)
            else:
                process.kill()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired as error:
                process.kill()
                process.wait()
                raise Failure(f"{target}: the command hangs after the serving process was killed") from error
            # Whoever was killed early says little about how long it takes.
            self.took[target] = max(usual, (time.monotonic() - begin))
            self.halfway[target] += 1
            return True
        if process.returncode != 0:
            raise Failure(f"{target}: exit code {process.returncode}, not killed")
        self.took[target] = (usual + time.monotonic() - begin) / 2
        if serving:
            kill_and_wait(pid)
        return False

    def _exists(self, name: str) -> bool:
        return any(b["name"] == name for b in self.cowfs.json("branch", "list"))

    def _whole(self, name: str, digest: str, what: str) -> None:
        """The branch holds exactly this, and can be written to."""
        self.cowfs.mount(name, self.other)
        check(tree_digest(self.other) == digest, f"{what}: the branch is there, with other contents")
        (self.other / "probe").write_bytes(b"probe")
        self.cowfs.unmount(name)

    def _after_fork(self, name: str, target: str, cut: bool) -> str:
        there = self._exists(name)
        check(there or cut, f"{target} had returned and the branch is not there")
        if not there:
            # The name is free; or the serving process has finished what the killed command had asked for.
            self.cowfs("branch", "create", name, "--from", "kept", "--if-not-exists")
        self._whole(name, self.digest, target)
        self.cowfs("branch", "delete", name, "--purge")
        return f"{'killed' if cut else 'finished'}, {'there' if there else 'not there'}"

    def _fork(self, name: str) -> str:
        return self._after_fork(name, "fork", self._killed("fork", "branch", "create", name, "--from", "kept"))

    def _fork_serving(self, name: str) -> str:
        cut = self._killed("fork-serving", "branch", "create", name, "--from", "kept", serving=True)
        drop_mounts(self.cowfs)
        self.cowfs("check")
        self.cowfs.mount("kept", self.top)
        return self._after_fork(name, "fork", cut)

    def _delete(self, name: str) -> str:
        self.cowfs("branch", "create", name, "--from", "kept")
        cut = self._killed("delete", "branch", "delete", name)
        there = self._exists(name)
        check(cut or not there, "delete had returned and the branch is there")
        if there:
            self._whole(name, self.digest, "delete")
            self.cowfs("branch", "delete", name, "--purge")
        return f"{'killed' if cut else 'finished'}, {'there' if there else 'gone'}"

    def _gc(self, name: str) -> str:
        for part in range(3):
            doomed = f"{name}-{part}"
            self.cowfs("branch", "create", doomed, "--from", "kept")
            self.cowfs.mount(doomed, self.other)
            for number in range(20):
                (self.other / f"g{number}").write_bytes(self.rng.randbytes(5000))
            self.cowfs.unmount(doomed)
            self.cowfs("branch", "delete", doomed, "--purge")
        cut = self._killed("gc", "gc")
        self.cowfs("check")
        self.cowfs("gc")
        left = self.cowfs.json("check")["unreachable_layers"]
        check(left == 0, f"{left} layers are still unreachable after a gc that finished")
        return "killed" if cut else "finished"

    def _import(self, name: str) -> str:
        before = tree_digest(self.source)
        cut = self._killed("import", "import", "--any", str(self.source), "--as", name)
        there = self._exists(name)
        check(there or cut, "import had returned and the branch is not there")
        self.cowfs("check")
        self.cowfs("gc")
        if not there:
            self.cowfs("import", "--any", str(self.source), "--as", name)
        check(tree_digest(self.source) == before, "the import has changed its source")
        self._whole(name, before, "import")
        self.cowfs("branch", "delete", name, "--purge")
        return f"{'killed' if cut else 'finished'}, {'there' if there else 'not there'}"

    def _unmount(self, _name: str) -> str:
        """The serving process dies while it tidies up for an unmount."""
        cut = self._killed("unmount", "unmount", "kept", serving=True)
        drop_mounts(self.cowfs)
        return "killed" if cut else "finished"
