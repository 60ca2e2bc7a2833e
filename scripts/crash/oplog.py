"""The log of a recorder: what it was about to do, and what was acknowledged.

One JSON array per line, appended by a single write, so that the length of the file at some moment is a point
in time that can be compared with a fork or a crash:

    [n, operation, argument..]     about to happen
    [n, "ok", result..]            has returned
    [n, "error", errno]            was refused
    [n, "mismatch", what]          a read gave something else than was written
"""

from __future__ import annotations

import json
from pathlib import Path

PAGE = 4096
#: Files never grow beyond this many bytes.
LIMIT = 48 * PAGE


def payload(tag: str, length: int) -> bytes:
    """The bytes of a write: its tag over and over, so that misplaced bytes say where they come from."""
    word = tag.encode()
    return (word * (length // len(word) + 1))[:length]


def read_log(path: Path, until: int | None = None) -> list:
    """The complete lines before byte `until`, each as (position after it, entry)."""
    data = path.read_bytes()[:until]
    entries, position = [], 0
    for line in data.splitlines(keepends=True):
        position += len(line)
        if line.endswith(b"\n"):
            entries.append((position, json.loads(line)))
    return entries
