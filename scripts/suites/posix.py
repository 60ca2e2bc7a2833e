"""Suites for filesystems: pjdfstest, fsx, stress-ng, fio. Each gives {test: "pass" | "fail" | "skip"}."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from suites.places import BRANCH, FORK, FORKED, HOST
from suites.tools import from_apt, from_cargo

PJDFSTEST_CONFIG = """
[features]
posix_fallocate = {}
rename_ctime = {}
utimensat = {}
utime_now = {}
stat_st_birthtime = {}
[settings]
naptime = 0.01
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"""

class Pjdfstest:
    """What the system calls for files must do, about 400 cases."""

    name, places = "pjdfstest", (HOST, BRANCH, FORK)

    def fetch(self, _quick: bool) -> None:
        self.program = from_cargo("pjdfstest")

    def run(self, top: Path, scratch: Path) -> dict:
        config = scratch / "pjdfstest.toml"
        config.write_text(PJDFSTEST_CONFIG)
        done = subprocess.run([self.program, "-c", config, "-p", top], capture_output=True, text=True, timeout=900,
                              check=False)
        (scratch / "pjdfstest.log").write_text(done.stdout + done.stderr)
        outcome = {"ok": "pass", "skipped": "skip"}
        return {name: outcome.get(result, "fail")
                for name, result in re.findall(r"^(\S+::\S+)\s+(ok|skipped|FAILED|failed)", done.stdout, re.M)}

class Fsx:
    """Random operations on one file, checked against memory; several mixes, several seeds."""

    name, places = "fsx", (HOST, BRANCH, FORK, FORKED)
    ALL = {"close_open": 1, "invalidate": 1, "mapread": 5, "mapwrite": 5, "read": 10, "write": 10, "truncate": 5,
           "fsync": 1, "fdatasync": 1, "posix_fallocate": 2, "punch_hole": 5, "sendfile": 2, "posix_fadvise": 1,
           "copy_file_range": 5}
    #: name -> (operations that do not happen in this mix, longest file, longest operation)
    MIXES = {
        "everything": ((), 1 << 20, 1 << 17),
        "no-maps": (("mapread", "mapwrite"), 1 << 20, 1 << 16),
        "small": ((), 1 << 14, 1 << 12),
        "large": (("invalidate",), 1 << 24, 1 << 20),
        "holes": (("copy_file_range", "sendfile", "mapwrite"), 1 << 18, 1 << 15),
        "no-sync": (("fsync", "fdatasync", "close_open", "invalidate"), 1 << 19, 1 << 16),
    }

    def __init__(self) -> None:
        self.operations, self.seeds = 0, 0

    def fetch(self, quick: bool) -> None:
        self.program = from_cargo("fsx")
        few = (3_000, 1) if quick else (60_000, 3)
        self.operations, self.seeds = self.operations or few[0], self.seeds or few[1]

    def run(self, top: Path, scratch: Path) -> dict:
        results = {}
        for mix, (without, length, operation) in self.MIXES.items():
            config = scratch / f"fsx-{mix}.toml"
            weights = "".join(f"{k} = {v}\n" for k, v in self.ALL.items() if k not in without)
            # Of a posix_fallocate of no bytes, which POSIX refuses, fsx says that the filesystem has none.
            config.write_text(f"flen = {length}\n[opsize]\nmin = 1\nmax = {operation}\n[weights]\n{weights}")
            operations = self.operations // 10 if mix == "large" else self.operations
            for seed in range(1, self.seeds + 1):
                argv = [self.program, "-q", "-f", config, "-N", operations, "-S", seed, "-P", scratch, top / f"fsx-{mix}"]
                done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=3600, check=False)
                results[f"{mix} seed {seed}, {operations} operations"] = "fail" if done.returncode else "pass"
                if done.returncode:
                    (scratch / f"fsx-{mix}-{seed}.log").write_text(done.stdout + done.stderr)
        return results

class StressNg:
    """Every stressor of the class filesystem, with its own verification, one after the other."""

    name, places = "stress-ng", (HOST, BRANCH, FORK, FORKED)
    #: Not about the directory they are given: they need devices, or (io) sync every mount of the machine.
    LEFT_OUT = ("io", "io-uring", "sync-file", "iomix", "binderfs", "bind-mount", "procfs", "ioprio", "eventfd")

    def fetch(self, quick: bool) -> None:
        self.program, self.seconds = from_apt("stress-ng", "stress-ng"), 1
        # It ends in an error, and the list is on either stream.
        listed = subprocess.run([self.program, "--class", "filesystem?"], capture_output=True, text=True, check=False)
        names = (listed.stdout + listed.stderr).split("stressors:", 1)[1].split()
        self.stressors = [n for n in names if n not in self.LEFT_OUT]
        if quick:
            self.stressors = [n for n in self.stressors if n in ("dentry", "fallocate", "fpunch", "hdd", "link", "rename")]

    def run(self, top: Path, scratch: Path) -> dict:
        results = {}
        for stressor in self.stressors:
            argv = [self.program, f"--{stressor}", 1, "--timeout", f"{self.seconds}s", "--verify", "--temp-path", top]
            done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=300, check=False)
            results[stressor] = {0: "pass", 3: "skip", 4: "skip"}.get(done.returncode, "fail")
            if results[stressor] == "fail":
                (scratch / f"stress-ng-{stressor}.log").write_text(done.stdout + done.stderr)
        return results

class Fio:
    """Random writes through each way of doing I/O, every block read back with its checksum."""

    name, places = "fio", (HOST, BRANCH, FORK, FORKED)
    ENGINES = {"psync": [], "direct": ["--direct=1"], "libaio": ["--ioengine=libaio", "--direct=1", "--iodepth=8"],
               "mmap": ["--ioengine=mmap"], "io_uring": ["--ioengine=io_uring", "--iodepth=8"],
               "sync": ["--fsync=16"], "dsync": ["--sync=dsync"]}

    def fetch(self, quick: bool) -> None:
        self.program, self.size = from_apt("fio", "fio"), "4M" if quick else "32M"

    def run(self, top: Path, scratch: Path) -> dict:
        results = {}
        for engine, options in self.ENGINES.items():
            for block in ("4k", "8k", "1k-64k"):
                if block.startswith("1k") and "--direct=1" in options:
                    continue  # O_DIRECT wants whole sectors on any filesystem
                ranged = f"--bsrange={block}" if "-" in block else f"--bs={block}"
                argv = [self.program, "--name", f"{engine}-{block}", "--directory", top, "--rw=randwrite", ranged,
                        f"--size={self.size}", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--verify_dump=0",
                        "--randseed=7", "--output-format=json", *options]
                done = subprocess.run([str(a) for a in argv], cwd=scratch, capture_output=True, text=True, timeout=900,
                                      check=False)
                results[f"{engine} {block}"] = self._judge(done)
        return results

    @staticmethod
    def _judge(done: subprocess.CompletedProcess) -> str:
        try:
            jobs = json.loads(done.stdout[done.stdout.index("{"):])["jobs"]
        except (ValueError, KeyError):
            return "fail"
        return "pass" if done.returncode == 0 and all(job["error"] == 0 for job in jobs) else "fail"

