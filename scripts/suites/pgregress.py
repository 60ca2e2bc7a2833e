"""PostgreSQL's own regression, isolation and recovery suites with the distribution's server, its data on the place."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from harness import Cluster, Failure, Postgres, Sandbox, as_postgres, check, give_to_postgres, newest_first, run, say
from suites.places import BRANCH, FORK, HOST
from suites.tools import Missing, install, postgres_source

#: What the build of the test programs needs: the tree's configure is told to do without everything else.
CONFIGURE = ["--quiet", "--without-icu", "--without-readline", "--without-zlib"]
PARTS = ("src/test/regress", "src/test/isolation", "contrib/spi")
#: What the recovery suite reads besides.
TAP_PARTS = ("src/test/perl", "src/test/recovery")
#: One of its scripts, at most; the slowest takes two minutes on an idle machine.
TAP_SECONDS_MAX = 1200


def built_tree() -> Path:
    """The source of the installed server with its test programs built; kept for the next time."""
    if not newest_first():
        raise Missing("no server in /usr/lib/postgresql")
    version = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", f"postgresql-{Postgres(newest_first()[0]).major}"],
                             capture_output=True, text=True, check=False).stdout
    if not version:
        raise Missing("the server is not of a Debian package, its source is not known")
    tree = postgres_source(f"postgresql-{Postgres(newest_first()[0]).major}", version)
    if not (tree / "src/test/isolation/isolationtester").exists():
        say("  building the test programs of PostgreSQL (2 min)")
        try:
            run(["./configure", *CONFIGURE, f"--prefix={newest_first()[0].parent}"], cwd=tree)
            for part in PARTS:
                run(["make", "-s", "-C", part, "all"], cwd=tree, timeout_s=1800)
        except Failure as error:
            raise Missing(f"the test programs do not build: {error}") from error
    return tree


class InstallCheck:
    """What the two suites share: a server on the place, a copy of the tests that the server's user may read."""

    places = (HOST, BRANCH, FORK)
    sandbox: Sandbox

    def fetch(self, _quick: bool) -> None:
        self.tree = built_tree()
        self.postgres = Postgres(newest_first()[0])

    def run(self, top: Path, scratch: Path) -> dict:
        inputs = self.sandbox.base / "pg-tests"
        if not inputs.exists():
            for part in PARTS[:2]:
                shutil.copytree(self.tree / part, inputs / part)
            for library in (self.tree / "contrib/spi").glob("*.so"):
                shutil.copy(library, inputs / PARTS[0])
            run(["chmod", "-R", "a+rX", inputs])
        output = scratch / "out"
        (output / "results").mkdir(parents=True)
        run(["chown", "-R", "postgres:postgres", scratch])
        cluster = self._server(top)
        try:
            text = self._run_in(inputs, output, cluster)
        finally:
            cluster.stop()
        return self._parse(text)

    def _server(self, top: Path) -> Cluster:
        cluster = Cluster(self.sandbox, self.postgres, f"{top.name}", top)
        if not (top / "PG_VERSION").exists():
            give_to_postgres(top)
            top.chmod(0o700)
            cluster.initdb("--no-locale")
        cluster.start(max_connections="100", shared_buffers="128MB")
        return cluster

    def _run_in(self, inputs: Path, output: Path, cluster: Cluster) -> str:
        where = inputs / self.part
        argv = [where / self.program, f"--inputdir={where}", f"--outputdir={output}", f"--dlpath={inputs / PARTS[0]}",
                f"--bindir={self.postgres.client('psql').parent}", f"--host={cluster.socket}", "--port=5432",
                "--user=postgres", f"--schedule={where / self.schedule}", *self.options]
        done = subprocess.run([str(a) for a in as_postgres(argv)], cwd=output, capture_output=True, text=True,
                              timeout=3600, check=False)
        check("tests" in done.stdout, f"{self.program}: {(done.stdout + done.stderr)[-800:]}")
        return done.stdout

    @staticmethod
    def _parse(text: str) -> dict:
        found = re.findall(r"^(?:test|\s+)\s*([a-z][\w.-]*)\s+\.\.\. (ok|FAILED)", text, re.M)
        return {name: "pass" if result == "ok" else "fail" for name, result in found}


class Regress(InstallCheck):
    """The regression suite, in its parallel schedule."""

    name, part, program, schedule = "regress", PARTS[0], "pg_regress", "parallel_schedule"
    options = ["--max-concurrent-tests=20"]


class Isolation(InstallCheck):
    """The isolation suite: sessions whose steps interleave."""

    name, part, program, schedule = "isolation", PARTS[1], "pg_isolation_regress", "isolation_schedule"
    options = ["--dbname=isolation_regression"]


class Recovery(InstallCheck):
    """The recovery suite: crashes, standbys, archives, point in time, each script with clusters of its own."""

    name = "recovery"
    places = (HOST, BRANCH)

    def fetch(self, quick: bool) -> None:
        super().fetch(quick)
        perl_module("IPC::Run", "libipc-run-perl")
        perl_module("Test::More", "perl")

    def run(self, top: Path, scratch: Path) -> dict:
        inputs = self.sandbox.base / "pg-recovery"
        if not inputs.exists():
            for part in (PARTS[0], *TAP_PARTS):
                shutil.copytree(self.tree / part, inputs / part)
            for library in (self.tree / "contrib/spi").glob("*.so"):
                shutil.copy(library, inputs / PARTS[0])
            run(["chown", "-R", "postgres:postgres", inputs])
        give_to_postgres(top)
        top.chmod(0o700)
        run(["chown", "-R", "postgres:postgres", scratch])
        scripts = sorted((inputs / "src/test/recovery/t").glob("*.pl"))
        return {script.stem: self._script(inputs, script, top, scratch) for script in scripts}

    def _script(self, inputs: Path, script: Path, top: Path, scratch: Path) -> str:
        """Its clusters lie below `top`, on the place, and go when it has passed."""
        own = top / script.stem
        regress = inputs / PARTS[0]
        environment = {
            "PATH": f"{self.postgres.client('psql').parent}:/usr/bin:/bin", "TESTDIR": own, "PGPORT": "65432",
            "PG_REGRESS": regress / "pg_regress", "REGRESS_SHLIB": regress / "regress.so", "LC_ALL": "C",
            "top_builddir": inputs,
        }
        argv = ["env", "-u", "PGHOST", *(f"{name}={value}" for name, value in environment.items()),
                "prove", "-I", inputs / TAP_PARTS[0], "-I", inputs / TAP_PARTS[1], script]
        run([str(a) for a in as_postgres(["mkdir", own])])
        try:
            done = subprocess.run([str(a) for a in as_postgres(argv)], cwd=inputs / TAP_PARTS[1], capture_output=True,
                                  text=True, timeout=TAP_SECONDS_MAX, check=False)
            said, passed = done.stdout + done.stderr, done.returncode == 0
        except subprocess.TimeoutExpired as error:
            said, passed = f"{error}", False
        (scratch / f"{script.stem}.txt").write_text(said)
        if not passed and (own / "tmp_check/log").is_dir():
            shutil.copytree(own / "tmp_check/log", scratch / script.stem)
        shutil.rmtree(own, ignore_errors=True)
        if "skipped:" in said and passed:
            return "skip"
        return "pass" if passed else "fail"


def perl_module(module: str, package: str) -> None:
    """Has the module, or installs the package that it is in."""
    def there() -> bool:
        return subprocess.run(["perl", f"-M{module}", "-e", "1"], capture_output=True, check=False).returncode == 0

    if not there():
        install(package)
    if not there():
        raise Missing(f"perl has no {module} (package {package})")
