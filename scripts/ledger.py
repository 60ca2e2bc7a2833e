"""Rows whose acknowledgement is known: what a live fork or a crash must not lose."""

from __future__ import annotations

import subprocess
import threading

from harness import Cluster, check

#: The ledger that the recorders insert into.
LEDGER = "CREATE TABLE ledger (client int, seq bigint, PRIMARY KEY (client, seq));"

#: Few buffers, small WAL, busy background writer: data pages reach the files all the time, and checkpoints follow
#: each other, so that a fork or a crash meets files of different moments.
RESTLESS = {"shared_buffers": "8MB", "max_wal_size": "48MB", "min_wal_size": "32MB", "checkpoint_timeout": "30s",
            "bgwriter_delay": "10ms", "bgwriter_lru_maxpages": "1000", "max_connections": "60"}


class Recorder(threading.Thread):
    """One client that inserts rows one by one and knows which were acknowledged."""

    def __init__(self, cluster: Cluster, number: int):
        super().__init__(daemon=True)
        self.number, self.acknowledged, self.sent, self.error = number, 0, 0, None
        self.ending = False
        argv = [cluster.postgres.client("psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", *cluster.connection()]
        self.psql = subprocess.Popen([str(a) for a in argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                     stderr=subprocess.PIPE, text=True)

    def run(self) -> None:
        while not self.ending:
            seq = self.sent + 1
            self.sent = seq
            try:
                # The echo comes only after the INSERT was acknowledged: psql stops at the first error.
                self.psql.stdin.write(f"INSERT INTO ledger VALUES ({self.number}, {seq});\n\\echo {seq}\n")
                self.psql.stdin.flush()
                answer = self.psql.stdout.readline().strip()
            except OSError as error:
                answer = str(error)
            if answer != str(seq):
                if not self.ending:
                    self.error = f"recorder {self.number}: expected {seq}, got '{answer}'"
                return
            self.acknowledged = seq

    def end(self) -> None:
        self.ending = True
        self.join(timeout=30)
        self.psql.kill()
        self.psql.wait()


def check_ledger(cluster: Cluster, at_least: dict, at_most: dict) -> dict:
    """Every client's rows are 1..n without gaps, n within what was acknowledged and what was sent; gives the n."""
    rows = cluster.sql("SELECT client, count(*), min(seq), max(seq) FROM ledger GROUP BY client")
    found = {}
    for line in filter(None, rows.split("\n")):
        client, count, lowest, highest = (int(v) for v in line.split("|"))
        check(lowest == 1 and count == highest,
              f"{cluster.name}: client {client}: {count} rows, but seq {lowest} to {highest}")
        found[client] = highest
    for client, acknowledged in at_least.items():
        got = found.get(client, 0)
        check(got >= acknowledged, f"{cluster.name}: client {client}: {acknowledged} acknowledged, {got} found")
        check(got <= at_most[client], f"{cluster.name}: client {client}: {got} found, but only {at_most[client]} were"
                                      " sent in time")
    return found
