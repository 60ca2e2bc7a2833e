"""What the end-to-end scripts share: a sandbox that cleans up, cowfs as a command, Postgres as a server.

Standard library only. Everything a script makes lies in one directory below --dir, which is
removed at the end; only processes started here are ever signalled.
"""

from __future__ import annotations

import glob
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

AS_ROOT = os.geteuid() == 0
REPO = Path(__file__).resolve().parent.parent
# A server of the user's own must never be reached by mistake.
for _name in [n for n in os.environ if n.startswith("PG")]:
    del os.environ[_name]
os.environ["LC_ALL"] = "C.UTF-8"
os.environ["PATH"] += ":/usr/sbin:/sbin"


class Failure(Exception):
    """A check did not hold, or a command failed; the message says which."""


def check(condition: bool, message: str) -> None:
    if not condition:
        raise Failure(message)


def run(argv: list, timeout_s: float = 600, ok: tuple = (0,), **kwargs) -> subprocess.CompletedProcess:
    """Runs a command to its end; raises Failure with its output unless it exits as expected."""
    argv = [str(a) for a in argv]
    try:
        done = subprocess.run(argv, timeout=timeout_s, capture_output=True, text=True, **kwargs)
    except subprocess.TimeoutExpired as error:
        raise Failure(f"{' '.join(argv)}: no answer within {timeout_s:.0f} s") from error
    if done.returncode not in ok:
        output = (done.stdout + done.stderr).strip()[-1500:]
        raise Failure(f"{' '.join(argv)}: exit code {done.returncode}\n{output}")
    return done


def as_postgres(argv: list) -> list:
    """The command as the user postgres: a server refuses to run as root."""
    return ["runuser", "-u", "postgres", "--", *argv] if AS_ROOT else list(argv)


def give_to_postgres(path: Path) -> None:
    if AS_ROOT:
        shutil.chown(path, "postgres", "postgres")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def cowfs_binary() -> Path:
    """The release binary: $COWFS_BIN, or built here if cargo finds it out of date."""
    if os.environ.get("COWFS_BIN"):
        return Path(os.environ["COWFS_BIN"])
    target = Path(os.environ.get("CARGO_TARGET_DIR", REPO / "target"))
    if not os.environ.get("COWFS_NO_BUILD"):
        run(["cargo", "build", "--release", "--locked", "--quiet", "--bin", "cowfs"], timeout_s=1800, cwd=REPO)
    return target / "release" / "cowfs"


class Sandbox:
    """A private directory with a store in it, and everything that must be undone at the end."""

    def __init__(self, name: str, parent: str = "/var/tmp", keep: bool = False):
        self.base = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=parent))
        # Others may pass through to directories of their own, and list nothing.
        self.base.chmod(0o711)
        self.keep = keep
        self._undo: list = []
        self.logs = self.directory("log", 0o711)

    def __enter__(self) -> "Sandbox":
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda n, _: sys.exit(128 + n))
        return self

    def __exit__(self, kind, _error, _trace) -> None:
        failed = kind is not None and kind is not SystemExit
        for undo in reversed(self._undo):
            try:
                undo()
            except (Failure, OSError) as error:
                say(f"cleaning up: {error}")
        if failed and os.environ.get("COWFS_KEEP_LOGS"):
            kept = Path(os.environ["COWFS_KEEP_LOGS"]) / self.base.name
            shutil.copytree(self.logs, kept, dirs_exist_ok=True)
            say(f"logs: {kept}")
        still = [line.split()[1] for line in open("/proc/mounts") if line.split()[1].startswith(f"{self.base}/")]
        if still:
            say(f"still mounted, nothing was removed: {' '.join(still)}")
        elif not self.keep:
            shutil.rmtree(self.base, ignore_errors=True)

    def on_exit(self, undo) -> None:
        """Registers what must be undone; the last registered is undone first."""
        self._undo.append(undo)

    def directory(self, name: str, mode: int = 0o700) -> Path:
        """A directory for the postgres user."""
        path = self.base / name
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(mode)
        give_to_postgres(path)
        return path

    def loop_filesystem(self, name: str, mkfs: list, size: str) -> Path:
        """A filesystem of its own on a loop device: `mkfs` is the command without the image."""
        image = self.base / f"{name}.img"
        run(["truncate", "-s", size, image])
        run([*mkfs, image])
        mount = self.base / name
        mount.mkdir()
        device = run(["losetup", "--direct-io=on", "--find", "--show", image]).stdout.strip()
        run(["mount", device, mount])
        run(["losetup", "--detach", device])  # takes effect when it is unmounted
        self.on_exit(lambda: run(["umount", "-l", mount]))
        return mount


class Cowfs:
    """The cowfs command on one store."""

    def __init__(self, sandbox: Sandbox, binary: Path, store: Path):
        self.sandbox, self.binary, self.store = sandbox, binary, store
        self.env = {**os.environ, "COWFS_STORE": str(store)}
        self.mounts: dict = {}
        sandbox.on_exit(self.unmount_all)

    def __call__(self, *args, ok: tuple = (0,), timeout_s: float = 600) -> str:
        return run([self.binary, *args], env=self.env, ok=ok, timeout_s=timeout_s).stdout

    def json(self, *args, timeout_s: float = 600):
        return json.loads(self(*args, "--json", timeout_s=timeout_s))

    def timed(self, *args) -> float:
        """Runs the command and gives how long the whole of it took, in seconds."""
        argv = [str(self.binary), *[str(a) for a in args]]
        start = time.perf_counter()
        done = subprocess.run(argv, env=self.env, capture_output=True, text=True, timeout=600, check=False)
        took = time.perf_counter() - start
        check(done.returncode == 0, f"{' '.join(argv)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return took

    def mount(self, branch: str, where: Path, *options: str) -> float:
        """Mounts and gives how long it took, in seconds."""
        where.mkdir(exist_ok=True)
        took = self.timed("mount", branch, where, *options)
        self.mounts[branch] = where
        return took

    def unmount(self, branch: str) -> None:
        """Unmounts; waits a little for processes that are just ending."""
        where = self.mounts[branch]
        deadline = time.monotonic() + 20
        while True:
            try:
                self("unmount", where)
                break
            except Failure:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.3)
        del self.mounts[branch]
        self.wait_until_free(branch)

    def wait_until_free(self, branch: str) -> None:
        """Waits for the serving process to be gone: `unmount` may return a moment before it."""
        deadline = time.monotonic() + 20
        while self.serving_pid(branch) is not None:
            check(time.monotonic() < deadline, f"the process that served {branch} did not end")
            time.sleep(0.02)

    def unmount_all(self) -> None:
        for branch, where in list(self.mounts.items()):
            try:
                run([self.binary, "unmount", "--lazy", where], env=self.env, timeout_s=60)
                # It still writes for a moment, into a directory that is about to be removed.
                self.wait_until_free(branch)
            except Failure as error:
                say(f"cleaning up: {error}")
                subprocess.run(["umount", "-l", str(where)], capture_output=True, check=False)
            del self.mounts[branch]

    def serving_pid(self, branch: str):
        """The pid that serves a branch, or None."""
        for found in self.json("status"):
            if found.get("branch") == branch:
                return found.get("pid")
        return None

    def head_layer(self, branch: str) -> Path:
        """The directory of the branch's open layer."""
        shown = self.json("branch", "show", branch)
        return self.store / "layers" / shown["layers"][0]["id"]


class Postgres:
    """The binaries of one major version, and clients for it."""

    def __init__(self, server_bin: Path):
        self.bin = server_bin
        version = run([server_bin / "postgres", "--version"]).stdout
        self.version = version.split()[2]
        self.major = int(re.match(r"\d+", self.version)[0])
        with_clients = [server_bin, *newest_first()]
        self.clients = next((d for d in with_clients if (d / "psql").exists()), None)
        check(self.clients is not None, "no psql found in /usr/lib/postgresql/*/bin")

    def client(self, name: str) -> Path:
        return self.clients / name

    def own(self, name: str):
        """A tool of exactly this version, or None: pg_checksums refuses other versions' clusters."""
        path = self.bin / name
        return path if path.exists() else None


def newest_first() -> list:
    found = [Path(p) for p in glob.glob("/usr/lib/postgresql/*/bin") if (Path(p) / "postgres").exists()]
    return sorted(found, key=lambda p: int(p.parent.name), reverse=True)


class Cluster:
    """One server on one data directory, reached through a private socket directory only."""

    DEFAULTS = {
        "shared_buffers": "64MB",
        "max_wal_size": "2GB",
        "listen_addresses": "",
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
    }

    def __init__(self, sandbox: Sandbox, postgres: Postgres, name: str, data: Path):
        self.sandbox, self.postgres, self.name, self.data = sandbox, postgres, name, data
        self.socket = sandbox.directory(f"s-{name}")
        self.log = sandbox.logs / f"{name}.log"
        self.pid = None
        sandbox.on_exit(self.end)

    def initdb(self, *options: str) -> None:
        run(as_postgres([self.postgres.bin / "initdb", "-D", self.data, "-U", "postgres", "-A", "trust",
                         "-k", "-E", "UTF8", "--no-instructions", *options]))

    def start(self, **settings: str) -> float:
        """Starts, waits until it takes connections, gives the seconds that took."""
        options = f"-k '{self.socket}' -p 5432"
        for key, value in {**self.DEFAULTS, **settings}.items():
            options += f" -c {key}='{value}'"
        start = time.perf_counter()
        try:
            run(as_postgres([self.postgres.bin / "pg_ctl", "-D", self.data, "-l", self.log, "-w", "-t", "180",
                             "-o", options, "start"]), timeout_s=240, stdin=subprocess.DEVNULL)
        except Failure as error:
            raise Failure(f"{error}\n{tail(self.log)}") from error
        self.pid = int((self.data / "postmaster.pid").read_text().split()[0])
        return time.perf_counter() - start

    def stop(self, mode: str = "fast") -> None:
        run(as_postgres([self.postgres.bin / "pg_ctl", "-D", self.data, "-m", mode, "-w", "-t", "180", "stop"]),
            timeout_s=240)
        self.pid = None

    def end(self) -> None:
        """At the end of everything: takes it down whatever state it is in."""
        if self.pid is None:
            return
        try:
            self.stop("immediate")
        except Failure:
            try:
                os.kill(self.pid, signal.SIGQUIT)
            except ProcessLookupError:
                pass
        self.pid = None

    def connection(self, database: str = "postgres") -> list:
        return ["-h", self.socket, "-p", "5432", "-U", "postgres", "-d", database]

    def sql(self, text: str, database: str = "postgres", timeout_s: float = 600) -> str:
        """Runs SQL, gives unaligned rows. Several statements run one by one, not as one transaction."""
        done = run([self.postgres.client("psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", *self.connection(database)],
                   input=text, timeout_s=timeout_s)
        return done.stdout.strip()

    def pgbench(self, *options, timeout_s: float = 3600, database: str = "postgres") -> str:
        return run(self.pgbench_argv(*options, database=database), timeout_s=timeout_s).stdout

    def pgbench_argv(self, *options, database: str = "postgres") -> list:
        argv = [self.postgres.client("pgbench"), "-h", self.socket, "-p", "5432", "-U", "postgres", *options, database]
        return [str(a) for a in argv]

    def amcheck(self) -> str:
        """pg_amcheck --heapallindexed over all databases; raises on any finding."""
        done = run([self.postgres.client("pg_amcheck"), "-h", self.socket, "-p", "5432", "-U", "postgres", "-a",
                    "--install-missing", "--heapallindexed", "-j", "2"], timeout_s=1800)
        lines = (done.stdout + done.stderr).splitlines()
        # --install-missing notes what is installed already; whatever else it prints is a finding.
        found = "\n".join(line for line in lines if not line.startswith("NOTICE:")).strip()
        check(found == "", f"pg_amcheck on {self.name}: {found[:1500]}")
        return "clean"

    def read_every_page(self) -> str:
        """Reads every page of every relation into shared buffers, where the server checks its checksum."""
        total = 0
        for database in self.sql("SELECT datname FROM pg_database WHERE datallowconn").split("\n"):
            total += int(self.sql(READ_EVERY_PAGE, database).split("\n")[-1] or 0)
        # Counters reach the view a little after the fact.
        failures = self.sql("SELECT coalesce(sum(checksum_failures), 0) FROM pg_stat_database")
        check(failures == "0", f"{self.name}: {failures} checksum failures")
        return f"{total} pages read and verified by the server"

    def checksums(self) -> str:
        """pg_checksums on the stopped cluster; None when this version's package has none."""
        tool = self.postgres.own("pg_checksums")
        if tool is None:
            return None
        out = run(as_postgres([tool, "--check", "-D", self.data]), timeout_s=1800).stdout
        bad = re.search(r"Bad checksums:\s*(\d+)", out)
        check(bad is not None and bad[1] == "0", f"pg_checksums on {self.name}: {out}")
        return f"pg_checksums: {re.search(r'Blocks scanned: *([0-9]+)', out)[1]} blocks clean"

    def tpcb_sums(self) -> int:
        """The four sums of a TPC-B database in one snapshot; raises unless they are equal."""
        row = self.sql("SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM"
                       " pgbench_tellers), (SELECT sum(bbalance) FROM pgbench_branches),"
                       " (SELECT coalesce(sum(delta), 0) FROM pgbench_history)")
        check(len(set(row.split("|"))) == 1, f"{self.name}: accounts|tellers|branches|history sums differ: {row}")
        return int(row.split("|")[0])


# Only relations with storage; temporary relations of others cannot be read.
READ_EVERY_PAGE = """
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_prewarm;
SELECT coalesce(sum(pg_prewarm(c.oid, 'buffer', f.fork)), 0)
FROM pg_class c, (VALUES ('main'), ('fsm'), ('vm')) AS f(fork)
WHERE c.relkind IN ('r', 'i', 't', 'm', 'S') AND c.relpersistence <> 't'
  AND pg_relation_size(c.oid, f.fork) > 0;
"""


def tail(path: Path, lines: int = 15) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


class Report:
    """Named checks with their times, printed as they happen and kept for the JSON summary."""

    def __init__(self, suite: str):
        self.suite, self.checks, self.facts = suite, [], {}
        self.started = time.time()

    def step(self, name: str, action):
        """Runs one check; a Failure is recorded and raised on."""
        start = time.perf_counter()
        try:
            result = action()
        except Exception as error:
            self._note(name, False, start, str(error))
            raise
        self._note(name, True, start, result if isinstance(result, str) else "")
        return result

    def skip(self, name: str, why: str) -> None:
        self.checks.append({"name": name, "skipped": why})
        say(f"  skipped  {name}: {why}")

    def _note(self, name: str, passed: bool, start: float, detail: str) -> None:
        took = time.perf_counter() - start
        self.checks.append({"name": name, "passed": passed, "seconds": round(took, 3), "detail": detail})
        say(f"  {'ok' if passed else 'FAILED':7}  {name} ({took:.1f} s){': ' + detail if detail else ''}")

    def finish(self, out=None) -> int:
        """Prints the summary as JSON (and writes it to `out`); gives the exit code."""
        passed = sum(1 for c in self.checks if c.get("passed"))
        failed = sum(1 for c in self.checks if c.get("passed") is False)
        skipped = sum(1 for c in self.checks if "skipped" in c)
        summary = {"suite": self.suite, "passed": passed, "failed": failed, "skipped": skipped,
                   "seconds": round(time.time() - self.started, 1), **self.facts, "checks": self.checks}
        text = json.dumps(summary, indent=2)
        print(text)
        if out:
            Path(out).parent.mkdir(parents=True, exist_ok=True)
            Path(out).write_text(text + "\n")
        say(f"{self.suite}: {passed} passed, {failed} failed, {skipped} skipped")
        return 1 if failed or not passed else 0


def percentile(values: list, fraction: float) -> float:
    """The smallest value that at least `fraction` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(fraction * 1e6) * len(ordered) // int(1e6)) - 1))]


def seeded(seed):
    """A random generator and its seed, which is printed so that a run can be repeated. Without a seed that of COWFS_SEED
    is taken, or any."""
    if seed is None:
        given = os.environ.get("COWFS_SEED")
        check(not given or given.isdigit(), f"COWFS_SEED={given}: a number from 0 on is wanted")
        seed = int(given) if given else random.SystemRandom().randrange(2**32)
    say(f"seed {seed}")
    return random.Random(seed), seed
