"""A filesystem that runs full: writers that know what was accepted, and a database on it, natively and on cowfs."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

from crash.oplog import payload
from harness import Cluster, Failure, Postgres, Sandbox, check, give_to_postgres, tail
from ledger import LEDGER

BLOCK = 8192
#: A WAL that is recycled and never grows: then native Postgres survives a full disk without a PANIC.
STEADY_WAL = {"min_wal_size": "64MB", "max_wal_size": "64MB", "shared_buffers": "16MB", "wal_recycle": "on",
              "autovacuum": "off", "checkpoint_timeout": "1h"}
GROW = "INSERT INTO big SELECT g, repeat(md5(g::text), 200) FROM generate_series(1, 400) g"


def fill(path: Path, direct: bool, limit: int = 1 << 34) -> int:
    """Appends blocks, each with its number, until the disk is full; gives how many were accepted.
    Anything but ENOSPC is a Failure."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | (os.O_DIRECT if direct else 0), 0o644)
    accepted = 0
    try:
        with mmap.mmap(-1, BLOCK) as buffer:
            while accepted * BLOCK < limit:
                buffer[:] = payload(f"{path.name[:4]:_<4}{accepted:012d}", BLOCK)
                written = os.pwrite(fd, buffer, accepted * BLOCK)
                check(written == BLOCK, f"{path.name}: {written} of {BLOCK} bytes written and no error")
                accepted += 1
                if not direct and accepted % 256 == 0:
                    os.fsync(fd)
        raise Failure(f"{limit} bytes fit on a disk that should be full")
    except OSError as error:
        check(error.errno == errno.ENOSPC, f"{path.name}: {os.strerror(error.errno)} where ENOSPC was due")
        return accepted
    finally:
        _close(fd, path)


def _close(fd: int, path: Path) -> None:
    try:
        os.close(fd)
    except OSError as error:
        check(error.errno == errno.ENOSPC, f"closing {path.name}: {os.strerror(error.errno)}")


def overwrite(path: Path, blocks: int) -> int:
    """Overwrites whole blocks, directly, of a file inherited from a parent until one is refused; gives how
    many were accepted."""
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    accepted = 0
    try:
        with mmap.mmap(-1, BLOCK) as buffer:
            for number in range(blocks):
                buffer[:] = payload(f"over{number:012d}", BLOCK)
                check(os.pwrite(fd, buffer, number * BLOCK) == BLOCK, "a short write and no error")
                accepted += 1
    except OSError as error:
        check(error.errno == errno.ENOSPC, f"overwriting: {os.strerror(error.errno)} where ENOSPC was due")
    finally:
        os.close(fd)
    return accepted


def judge_overwritten(path: Path, blocks: int, accepted: int, old_tag: str) -> str:
    """Every accepted block is new, every other is new or old, none is half of each."""
    for number in range(blocks):
        new = payload(f"over{number:012d}", BLOCK)
        old = payload(f"{old_tag:_<4}{number:012d}", BLOCK)
        with open(path, "rb") as file:
            file.seek(number * BLOCK)
            got = file.read(BLOCK)
        check(got == new or (number >= accepted and got == old),
              f"block {number} of {path.name}: {'half written' if got[:4096] in (new[:4096], old[:4096]) else 'wrong'},"
              f" {accepted} were accepted")
    return f"{accepted} of {blocks} blocks accepted, none by half"


def judge_filled(path: Path, accepted: int) -> str:
    """Accepted blocks that were written directly are there, and behind them is no half block."""
    size = path.stat().st_size
    check(size >= accepted * BLOCK, f"{path.name}: {size} bytes, {accepted} blocks were accepted")
    check(size % BLOCK == 0, f"{path.name}: ends with {size % BLOCK} bytes of a block that was refused")
    with open(path, "rb") as file:
        for number in range(accepted):
            check(file.read(BLOCK) == payload(f"{path.name[:4]:_<4}{number:012d}", BLOCK), f"{path.name}: block {number}")
    return f"{accepted} blocks, whole"


class Database:
    """A server whose data directory lies on the disk that runs full."""

    def __init__(self, sandbox: Sandbox, postgres: Postgres, name: str, data: Path):
        self.cluster = Cluster(sandbox, postgres, name, data)
        give_to_postgres(data)
        data.chmod(0o700)
        self.rows = 0

    def set_up(self) -> None:
        self.cluster.initdb()
        self.cluster.start(**STEADY_WAL)
        self.cluster.sql(f"CREATE TABLE big (n int, filler text); ALTER TABLE big ALTER filler SET STORAGE PLAIN;"
                         f"CREATE EXTENSION amcheck; {LEDGER}")
        # Several rounds through the WAL, so that its files are there and are only written again.
        for _ in range(4):
            self.cluster.sql(f"{GROW}; {GROW}; TRUNCATE big; SELECT pg_switch_wal(); CHECKPOINT")

    def record(self, count: int = 20) -> None:
        """Small transactions that need no new page of the table now and then; each is counted once acknowledged."""
        for _ in range(count):
            self.cluster.sql(f"INSERT INTO ledger VALUES (1, {self.rows + 1})", timeout_s=60)
            self.rows += 1

    def grow_until_refused(self) -> str:
        """Inserts until the server refuses; gives what it said."""
        for _ in range(2000):
            try:
                self.cluster.sql(GROW, timeout_s=120)
            except Failure as error:
                lines = str(error).strip().splitlines()
                return next((line for line in lines if "ERROR:" in line), lines[-1])
        raise Failure("the database grew on a full disk")

    def checkpoint(self) -> str:
        try:
            self.cluster.sql("CHECKPOINT", timeout_s=120)
            return "done"
        except Failure as error:
            return str(error).strip().splitlines()[-1]

    def panics(self) -> list:
        return [line for line in tail(self.cluster.log, 10_000).splitlines() if "PANIC" in line]

    def input_output_errors(self) -> list:
        return [line for line in tail(self.cluster.log, 10_000).splitlines() if "Input/output error" in line]

    def is_sound(self) -> str:
        """Every acknowledged row, and the indexes; restarts it if it went down."""
        found = self.cluster.sql("SELECT count(*) FROM ledger WHERE client = 1")
        check(int(found) >= self.rows, f"{self.rows} rows acknowledged, {found} found")
        self.cluster.amcheck()
        return f"{found} rows, indexes clean"
