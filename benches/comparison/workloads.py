"""The workloads: each measures one side once and gives figures by name.

A figure is a rate (transactions, bytes or operations a second) or, where its name ends in `_s`, a time in seconds.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path

from harness import Cluster, as_postgres, run

from .sides import Side

CLIENTS = 4
SETTINGS = {"shared_buffers": "128MB", "max_wal_size": "4GB", "checkpoint_timeout": "30min", "autovacuum": "off",
            "jit": "off", "huge_pages": "off", "full_page_writes": "on", "max_parallel_workers_per_gather": "0"}


def drop_caches() -> None:
    """Nothing of any side stays in the memory of the kernel."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n", encoding="ascii")


def rate(output: str) -> float:
    return float(re.search(r"^tps = ([0-9.]+)", output, re.M)[1])


class Workloads:
    """All of them, with the amounts of one run."""

    def __init__(self, seconds: int, fio_mib: int, load_scale: int):
        self.seconds, self.fio_mib, self.load_scale = seconds, fio_mib, load_scale
        #: Transactions per client of the writing workloads: the same on every side, for equal histories.
        self.transactions = {"on": 0, "off": 0}
        #: Transactions of the measured slice, for what the serving process did per transaction.
        self.counted = 0
        #: Called where the measured slice begins, unless that is where its method does.
        self.begun = lambda: None

    def calibrate(self, side: Side) -> None:
        """Chooses the amounts so that a slice on the reference takes about `seconds`."""
        for mode in self.transactions:
            # Twice: the first slice after a start writes full pages for nearly every transaction.
            for transactions in (300, 600):
                seen = rate(self.tpcb(side.cluster, mode, transactions))
            self.transactions[mode] = max(200, int(seen * self.seconds / CLIENTS))

    def tps(self, output: str) -> float:
        self.counted += int(re.search(r"^number of transactions actually processed: (\d+)", output, re.M)[1])
        return rate(output)

    def tpcb(self, cluster: Cluster, mode: str, transactions: int, *options: str) -> str:
        os.environ["PGOPTIONS"] = f"-c synchronous_commit={mode}"
        try:
            return cluster.pgbench("-n", "-c", CLIENTS, "-j", 2, "-t", transactions, *options)
        finally:
            del os.environ["PGOPTIONS"]

    def warm(self, side: Side) -> None:
        """Everything into memory, as far as there is room."""
        for name in ("pgbench_accounts", "pgbench_accounts_pkey"):
            side.cluster.sql(f"SELECT pg_prewarm('{name}', 'read'), pg_prewarm('{name}', 'buffer')")

    # Each of the following is a workload.

    def cold(self, side: Side, measure) -> dict:
        """Runs `measure` twice from nothing in memory, as after a reboot, and takes the second. (What serves a peer in
        user space keeps running.)

        On a virtual machine whoever comes after somebody else is slower, by a factor of two: the memory that was given
        back has to be had from the hypervisor again, and the disk is a file in the cache of another machine."""
        for _ in range(2):
            side.cluster.stop()
            side.remount()
            side.cluster.start(**SETTINGS)
            drop_caches()
            self.counted = 0
            self.begun()
            figures = measure(side)
        return figures

    def scan_cold(self, side: Side) -> dict:
        """One process reads the accounts from first to last, nothing in memory."""
        def scan(side: Side) -> dict:
            began = time.perf_counter()
            side.cluster.sql("SELECT sum(abalance) FROM pgbench_accounts")
            return {"bytes_per_s": size / (time.perf_counter() - began)}
        size = int(side.cluster.sql("SELECT pg_relation_size('pgbench_accounts')"))
        return self.cold(side, scan)

    def select(self, side: Side) -> dict:
        return {"tps": self.tps(side.cluster.pgbench("-n", "-S", "-c", CLIENTS, "-j", 2, "-T", self.seconds))}

    def select_cold(self, side: Side) -> dict:
        return self.cold(side, self.select)

    def select_warm(self, side: Side) -> dict:
        self.warm(side)
        side.cluster.pgbench("-n", "-S", "-c", CLIENTS, "-j", 2, "-T", 2)
        self.begun()
        return self.select(side)

    def connections(self, side: Side) -> dict:
        return {"tps": self.tps(side.cluster.pgbench("-n", "-S", "-C", "-c", CLIENTS, "-j", 2, "-T", self.seconds))}

    def commit(self, side: Side) -> dict:
        return self.committed(side, "fdatasync")

    def commit_open(self, side: Side) -> dict:
        return self.committed(side, "open_datasync")

    def committed(self, side: Side, method: str) -> dict:
        side.cluster.sql(f"ALTER SYSTEM SET wal_sync_method = {method}; SELECT pg_reload_conf(); CHECKPOINT")
        self.tpcb(side.cluster, "off", 100)
        self.begun()
        figures = {"tps": self.tps(self.tpcb(side.cluster, "on", self.transactions["on"]))}
        side.cluster.sql("ALTER SYSTEM RESET wal_sync_method; SELECT pg_reload_conf(); CHECKPOINT")
        return figures

    def commit_async(self, side: Side) -> dict:
        """Asynchronous commits, and then the checkpoint of what they wrote."""
        side.cluster.sql("CHECKPOINT")
        figures = {"tps": self.tps(self.tpcb(side.cluster, "off", self.transactions["off"]))}
        began = time.perf_counter()
        side.cluster.sql("CHECKPOINT")
        figures["checkpoint_s"] = time.perf_counter() - began
        return figures

    def rewrite_once(self, side: Side) -> None:
        """Every tenth page of the accounts is rewritten, before the scans of what is left."""
        side.cluster.sql("UPDATE pgbench_accounts SET filler = filler WHERE (aid / 61) % 10 = 0")
        side.cluster.sql("SELECT sum(abalance) FROM pgbench_accounts")
        side.cluster.sql("CHECKPOINT")

    def load(self, side: Side) -> dict:
        side.cluster.sql("CREATE DATABASE load")
        began = time.perf_counter()
        side.cluster.pgbench("-i", "-q", "-s", self.load_scale, database="load")
        took = time.perf_counter() - began
        side.cluster.sql("DROP DATABASE load")
        side.cluster.sql("CHECKPOINT")
        return {"load_s": took}

    def initdb(self, side: Side) -> dict:
        """initdb, the first start and the stop, in a directory of the side's filesystem."""
        data = side.data / "bench" / "initdb"
        steps = {"initdb_s": ["initdb", "-D", data, "-U", "postgres", "-A", "trust", "-k", "--no-instructions"],
                 "start_s": ["pg_ctl", "-D", data, "-w", "-l", side.data / "bench" / "log", "-o",
                             f"-k {side.cluster.socket} -p 5433 -c listen_addresses=''", "start"],
                 "stop_s": ["pg_ctl", "-D", data, "-w", "-m", "fast", "stop"]}
        figures = {}
        for name, (program, *words) in steps.items():
            began = time.perf_counter()
            run(as_postgres([side.cluster.postgres.bin / program, *words]), stdin=subprocess.DEVNULL)
            figures[name] = time.perf_counter() - began
        run(["rm", "-r", data])
        return figures

    def fio(self, side: Side) -> dict:
        """8 KiB and 1 MiB requests of one process on a file that came with the base."""
        file, figures = side.data / "bench" / "fio", {}
        each = max(2, self.seconds // 4)
        # What, whether cold, and the options of fio.
        jobs = (("random_read_cold", True, ["--rw=randread", "--bs=8k", f"--runtime={each}", "--time_based"]),
                ("read_cold", True, ["--rw=read", "--bs=1m"]),
                ("random_read_warm", False, ["--rw=randread", "--bs=8k", f"--runtime={each}", "--time_based"]),
                ("read_warm", False, ["--rw=read", "--bs=1m"]),
                ("random_write", False, ["--rw=randwrite", "--bs=8k", "--end_fsync=1", "--io_size=64m"]),
                ("random_write_fdatasync", False,
                 ["--rw=randwrite", "--bs=8k", "--fdatasync=1", f"--runtime={each}", "--time_based"]),
                ("write", False, ["--rw=write", "--bs=1m", "--end_fsync=1"]))
        for name, cold, options in jobs:
            if cold:
                drop_caches()
            done = run(["fio", f"--name={name}", f"--filename={file}", f"--size={self.fio_mib}m", "--ioengine=psync",
                        "--invalidate=0", "--randseed=7", "--output-format=json", *options])
            job = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
            way = job["read"] if "read" in name else job["write"]
            figures[f"{name}_bytes_per_s"] = way["io_bytes"] / max(0.001, job["job_runtime"] / 1e3)
        return figures


#: Key, title, method of Workloads, and what has to happen once before its rounds.
ORDER = (("W5", "cold sequential scan, the second of two", "scan_cold", None), ("W4", "select-only, cold, the second of two", "select_cold", None),
         ("W3", "select-only, warm", "select_warm", None), ("W10", "a connection per transaction", "connections", None),
         ("W1", "TPC-B, synchronous_commit=on", "commit", None),
         ("W1o", "the same, wal_sync_method=open_datasync", "commit_open", None),
         ("W2", "TPC-B, synchronous_commit=off; W7 its checkpoint", "commit_async", None),
         ("W5f", "cold sequential scan, the second of two, every tenth page rewritten", "scan_cold", "rewrite_once"),
         ("W6", "bulk load", "load", None), ("W9", "initdb, start, stop", "initdb", None), ("W8", "fio", "fio", None))
