"""The filesystem below a store: on a loop device, with a power switch and a boot id of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import uuid
from pathlib import Path

from harness import Cowfs, Failure, Sandbox, check, run

SHIMS = Path(__file__).resolve().parent / "shims"
MKFS = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-f"]}


def missing_tools(kinds: list) -> str:
    """What stops power cuts here, in words; empty if nothing does."""
    if os.geteuid() != 0:
        return "needs root (loop devices, mount)"
    if not os.path.exists("/dev/fuse"):
        return "needs /dev/fuse"
    for tool in ("xfs_io", "cc", *(MKFS[kind][0] for kind in kinds)):
        if shutil.which(tool) is None:
            return f"{tool} is not installed (scripts/install-deps test)"
    return ""


def build_shim(name: str, where: Path) -> Path:
    """Compiles shims/NAME.c to a library for LD_PRELOAD."""
    library = where / f"{name}.so"
    run(["cc", "-O1", "-shared", "-fPIC", "-o", library, SHIMS / f"{name}.c"])
    return library


class HostDisk:
    """A filesystem in an image file. `cut` loses whatever it had not written; `come_back` replays its log."""

    def __init__(self, sandbox: Sandbox, kind: str, size: str = "2G"):
        self.sandbox, self.kind = sandbox, kind
        self.image = sandbox.base / "host.img"
        self.mount_point = sandbox.base / "host"
        self.boot_id = sandbox.base / "boot_id"
        self.mount_point.mkdir()
        run(["truncate", "-s", size, self.image])
        run([*MKFS[kind], self.image])
        self.is_mounted = False
        sandbox.on_exit(self.end)
        self.come_back()

    def environment(self, mutant: str = "") -> dict:
        """What cowfs is to be run with: the boot id of this machine's last "boot", and maybe the mutant."""
        libraries = [build_shim("boot_id", self.sandbox.base)]
        found = {"COWFS_FAKE_BOOT_ID": str(self.boot_id)}
        if mutant:
            libraries.append(build_shim("swallow_sync", self.sandbox.base))
            found["COWFS_SWALLOW"] = mutant
        found["LD_PRELOAD"] = ":".join(str(library) for library in libraries)
        return found

    def cut(self) -> None:
        """The power goes: nothing reaches the disk any more, not even the host filesystem's own log."""
        run(["xfs_io", "-x", "-c", "shutdown", self.mount_point])

    def sync(self) -> None:
        """Makes everything so far durable: set-up that a cut is not meant to test."""
        run(["sync", "-f", self.mount_point])

    def detach(self) -> None:
        """Unmounts, once whoever used it is gone."""
        deadline = time.monotonic() + 20  # for those that are just ending
        while subprocess.run(["umount", self.mount_point], capture_output=True, check=False).returncode != 0:
            if time.monotonic() > deadline:
                users = subprocess.run(["fuser", "-vm", self.mount_point], capture_output=True, text=True, check=False)
                raise Failure(f"{self.mount_point} stays busy:\n{users.stderr}")
            time.sleep(0.05)
        self.is_mounted = False

    def come_back(self) -> None:
        """Mounts it (replaying its log), on a machine that has booted anew."""
        self.boot_id.write_text(f"{uuid.uuid4()}\n")
        deadline = time.monotonic() + 60
        while True:
            self._wait_for_loop_device(deadline)
            run(["mount", "-o", "loop", self.image, self.mount_point])
            self.is_mounted = True
            if self._is_alive():
                return
            # Somebody's mount namespace kept the old superblock, and mount found it again.
            check(time.monotonic() < deadline, f"{self.mount_point} stays shut down")
            self.detach()
            time.sleep(0.2)

    def _wait_for_loop_device(self, deadline: float) -> None:
        """Until nothing holds the image any more: mounting before that gives the filesystem that was shut down."""
        while run(["losetup", "-j", self.image]).stdout.strip():
            check(time.monotonic() < deadline, f"{self.image} stays attached to a loop device")
            time.sleep(0.05)

    def _is_alive(self) -> bool:
        probe = self.mount_point / "probe"
        try:
            probe.write_bytes(b"")
            probe.unlink()
            os.listdir(self.mount_point)
        except OSError:
            return False
        return True

    def end(self) -> None:
        if self.is_mounted:
            run(["umount", "-l", self.mount_point])
            self.is_mounted = False


def kill_and_wait(pid: int, timeout_s: float = 20) -> None:
    """SIGKILL to a process that the campaign started; waits until it is gone, if it is not a child of ours."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    deadline = time.monotonic() + timeout_s
    while _runs(pid):
        check(time.monotonic() < deadline, f"process {pid} survives SIGKILL")
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (OSError, IndexError):
        return False


def drop_mounts(cowfs: Cowfs) -> None:
    """Detaches every mount of this store, whose serving processes are dead."""
    for branch, where in list(cowfs.mounts.items()):
        subprocess.run(["umount", "-l", where], capture_output=True, check=False)
        del cowfs.mounts[branch]


def remove_all_branches(cowfs: Cowfs) -> None:
    """Makes room: what failed rounds left, children before their parents."""
    for branch in reversed(cowfs.json("branch", "list")):
        cowfs("branch", "delete", branch["name"], "--purge")
    cowfs("gc")


class PowerCut:
    """The crash that loses what was not synced."""

    #: What must be there afterwards: only what was synced.
    everything_completed = False
    #: The shutdown of a host filesystem is not quite a power cut: an fdatasync that is under way meanwhile may be
    #: answered with success and not kept. Measured on bare ext4 and XFS, without cowfs (four writers, fdatasync after
    #: each write, Linux 6.18): in 22 and 21 of 60 rounds, never of an answer from before. No process hears such an
    #: answer when the power really goes, so answers that came once the cut had begun are judged apart.
    host_may_lie = True

    def __init__(self, host: HostDisk):
        self.host = host

    def settle(self) -> None:
        self.host.sync()

    def strike(self, pids: list) -> None:
        self.host.cut()
        for pid in pids:
            kill_and_wait(pid)

    def recover(self, cowfs: Cowfs) -> None:
        drop_mounts(cowfs)
        self.host.detach()
        self.host.come_back()


class Kill:
    """SIGKILL of the serving processes; the host lives on."""

    #: What must be there afterwards: every call that had returned, on files that were closed.
    everything_completed = True
    host_may_lie = False

    def settle(self) -> None:
        pass

    def strike(self, pids: list) -> None:
        for pid in pids:
            kill_and_wait(pid)

    def recover(self, cowfs: Cowfs) -> None:
        drop_mounts(cowfs)
