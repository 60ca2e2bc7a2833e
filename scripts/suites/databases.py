"""Other databases that keep a log of their own: a live fork is a crash image for each of them.

Each writes numbered rows and knows which were acknowledged; then the branch is forked beside the load, and the
server is killed. Neither place may miss an acknowledged row, and the database's own checks must be clean.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

from harness import Cowfs, Failure, Sandbox, check, run
from suites.places import BRANCH, HOST
from suites.tools import from_apt

#: Inserts rows until it is killed, one transaction each, and says which were committed.
SQLITE_WRITER = """
import sqlite3, sys
path, journal = sys.argv[1:]
db = sqlite3.connect(path, isolation_level=None)
db.execute(f"PRAGMA journal_mode = {journal}")
db.execute("PRAGMA synchronous = FULL")
db.execute("CREATE TABLE IF NOT EXISTS rows (n INTEGER PRIMARY KEY, filler TEXT)")
n = db.execute("SELECT coalesce(max(n), 0) FROM rows").fetchone()[0]
while True:
    n += 1
    with db:
        db.execute("INSERT INTO rows VALUES (?, ?)", (n, str(n) * 200))
        if n % 7 == 0:
            db.execute("UPDATE rows SET filler = ? WHERE n = ?", ("changed", n // 2))
    print(n, flush=True)
"""

class Follower(threading.Thread):
    """A process that prints the number of each row after it was committed."""

    def __init__(self, argv: list, **kwargs):
        super().__init__(daemon=True)
        self.last = 0
        self.process = subprocess.Popen([str(a) for a in argv], stdout=subprocess.PIPE, text=True, **kwargs)
        self.start()

    def run(self) -> None:
        for line in self.process.stdout:
            if line.strip().isdigit():
                self.last = int(line)

    def wait_for_first(self) -> None:
        deadline = time.monotonic() + 60
        while self.last == 0:
            check(time.monotonic() < deadline and self.process.poll() is None, "the writer commits nothing")
            time.sleep(0.02)

    def kill(self) -> int:
        """Ends it and gives the last row that it had seen committed."""
        self.process.kill()
        self.process.wait()
        self.join(10)
        return self.last

class Forkable:
    """A suite whose branch is forked under load."""

    places = (HOST, BRANCH)
    sandbox: Sandbox
    cowfs: Cowfs
    branch: str | None

    def on_fork(self, label: str, look) -> None:
        """Forks the branch now, mounts the fork, looks at it, removes it. Nothing on the host."""
        if self.branch is None:
            return
        child = f"{self.branch}-{label}"
        where = self.sandbox.directory(f"p-{child}", 0o755)
        self.cowfs("branch", "create", child, "--from", self.branch)
        self.cowfs.mount(child, where)
        look(where)
        self.cowfs.unmount(child)
        self.cowfs("branch", "delete", child)

class Sqlite(Forkable):
    """SQLite in both of its journal modes."""

    name = "sqlite"

    def fetch(self, quick: bool) -> None:
        self.seconds, self.forks = (1.0, 2) if quick else (4.0, 8)

    def run(self, top: Path, _scratch: Path) -> dict:
        results = {}
        for journal in ("wal", "delete"):
            try:
                self._one(top, journal)
                results[journal] = "pass"
            except Failure as error:
                (_scratch / f"{journal}.log").write_text(str(error))
                results[journal] = "fail"
        return results

    def _one(self, top: Path, journal: str) -> None:
        file = f"{journal}.db"
        writer = Follower([sys.executable, "-c", SQLITE_WRITER, top / file, journal])
        try:
            writer.wait_for_first()
            for number in range(self.forks):
                time.sleep(self.seconds / self.forks)
                check(writer.process.poll() is None, "the writer ended by itself")
                committed = writer.last
                self.on_fork(f"{journal}-{number}", lambda where: self._judge(where / file, committed))
        finally:
            committed = writer.kill()
        self._judge(top / file, committed)

    @staticmethod
    def _judge(path: Path, committed: int) -> None:
        with sqlite3.connect(path) as db:
            found = db.execute("PRAGMA integrity_check").fetchall()
            check(found == [("ok",)], f"{path}: integrity_check: {found[:5]}")
            count, highest = db.execute("SELECT count(*), coalesce(max(n), 0) FROM rows").fetchone()
        db.close()
        check(count == highest and highest >= committed, f"{path}: {count} rows up to {highest}, {committed} committed")

class MariaDb(Forkable):
    """MariaDB with InnoDB and O_DIRECT: forks, kill -9, extended checks."""

    name = "mariadb"

    def fetch(self, quick: bool) -> None:
        self.server = from_apt("mariadb-server", "mariadbd")
        self.client = from_apt("mariadb-client", "mariadb")
        self.install = from_apt("mariadb-server", "mariadb-install-db")
        self.seconds, self.forks = (2.0, 1) if quick else (6.0, 3)

    def run(self, top: Path, scratch: Path) -> dict:
        results = {}
        data = top / "data"
        data.mkdir()
        run(["chown", "mysql:mysql", data])
        run([self.install, "--no-defaults", "--user=mysql", f"--datadir={data}", "--skip-test-db",
             "--auth-root-authentication-method=normal"])
        server = self._start(data, "first")
        try:
            self._sql("first", "CREATE DATABASE t; CREATE TABLE t.ledger (n INT PRIMARY KEY, filler TEXT) ENGINE=InnoDB")
            committed = self._load(results)
        finally:
            server.kill()
            server.wait()
        results["killed: every committed row, CHECK TABLE"] = self._verdict(scratch, data, "again", committed)
        return results

    def _start(self, data: Path, label: str) -> subprocess.Popen:
        socket = self._socket(label)
        argv = [self.server, "--no-defaults", "--user=mysql", f"--datadir={data}", f"--socket={socket}",
                "--skip-networking", "--innodb-flush-method=O_DIRECT", "--innodb-flush-log-at-trx-commit=1",
                "--innodb-buffer-pool-size=32M", f"--pid-file={socket}.pid", f"--log-error={socket}.log"]
        server = subprocess.Popen([str(a) for a in argv], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.sandbox.on_exit(lambda: server.kill() if server.poll() is None else None)
        deadline = time.monotonic() + 60
        while True:
            try:
                self._sql(label, "SELECT 1")
                return server
            except Failure:
                log = Path(f"{socket}.log")
                check(server.poll() is None and time.monotonic() < deadline,
                      f"mariadbd does not start: {log.read_text()[-1500:] if log.exists() else ''}")
                time.sleep(0.2)

    def _socket(self, label: str) -> Path:
        directory = self.sandbox.base / "mariadb"
        if not directory.exists():
            directory.mkdir()
            run(["chown", "mysql:mysql", directory])
        return directory / f"{self.branch or 'host'}-{label}"

    def _sql(self, label: str, text: str) -> str:
        return run([self.client, "--no-defaults", "-uroot", "-N", f"--socket={self._socket(label)}", "-e", text]).stdout

    def _load(self, results: dict) -> int:
        """Rows one by one, forks beside them; each fork is started and judged."""
        argv = [self.client, "--no-defaults", "-uroot", "-N", "--unbuffered", f"--socket={self._socket('first')}", "t"]
        follower = Follower(argv, stdin=subprocess.PIPE)
        feeder = threading.Thread(target=self._feed, args=(follower.process,), daemon=True)
        feeder.start()
        follower.wait_for_first()
        for number in range(self.forks):
            time.sleep(self.seconds / self.forks)
            committed = follower.last
            scratch = self.sandbox.logs
            self.on_fork(f"m{number}", lambda where: results.update(
                {f"fork {number}": self._verdict(scratch, where / "data", f"fork{number}", committed)}))
        return follower.kill()

    @staticmethod
    def _feed(client: subprocess.Popen) -> None:
        row = 0
        try:
            while True:
                row += 1
                client.stdin.write(f"INSERT INTO ledger VALUES ({row}, repeat('{row}-', 100)); SELECT {row};\n")
                client.stdin.flush()
        except OSError:
            pass  # the client was ended

    def _verdict(self, scratch: Path, data: Path, label: str, committed: int) -> str:
        try:
            server = self._start(data, label)
            try:
                count, highest = self._sql(label, "SELECT count(*), coalesce(max(n), 0) FROM t.ledger").split()
                checked = self._sql(label, "CHECK TABLE t.ledger EXTENDED")
                check("status\tOK" in checked, f"CHECK TABLE: {checked}")
                check(count == highest and int(highest) >= committed > 0, f"{count} rows up to {highest}, {committed} committed")
            finally:
                server.terminate()
                server.wait(60)
        except Failure as error:
            (scratch / f"mariadb-{label}.log").write_text(str(error))
            return "fail"
        return "pass"

