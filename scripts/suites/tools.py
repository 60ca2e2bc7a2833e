"""Where the suites come from: package registries, by name. Nothing of them is kept in this repository."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from harness import AS_ROOT, REPO, run, say


class Missing(Exception):
    """A suite cannot be had here; the message says what is missing."""


def fetched_dir() -> Path:
    """Where what is fetched stays for the next time."""
    where = Path(os.environ.get("CARGO_TARGET_DIR", REPO / "target")) / "suites"
    where.mkdir(parents=True, exist_ok=True)
    return where


def from_cargo(name: str) -> Path:
    """A program from crates.io; built once."""
    found = shutil.which(name)
    if found:
        return Path(found)
    built = fetched_dir() / "bin" / name
    if not built.exists():
        say(f"  fetching {name} from crates.io")
        argv = ["cargo", "install", "--locked", "--quiet", "--root", fetched_dir(), name]
        done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise Missing(f"cargo install {name}: {last}")
    return built


def from_apt(package: str, program: str) -> Path:
    """A program of the distribution; installed if it is missing and we may."""
    if not shutil.which(program):
        install(package)
    if not shutil.which(program):
        raise Missing(f"apt-get install {package} gives no {program}")
    return Path(shutil.which(program))


def install(package: str) -> None:
    """Installs a package of the distribution, if we may."""
    if not AS_ROOT or not shutil.which("apt-get"):
        raise Missing(f"package {package} is not installed")
    say(f"  installing {package}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    argv = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", package]
    subprocess.run(argv, env=env, capture_output=True, check=False)


def postgres_source(package: str, version: str) -> Path:
    """The source of the installed server package, through a source list of our own: the machine's apt
    configuration stays as it is."""
    where = fetched_dir() / f"{package}-{version}"
    unpacked = where / "tree"
    if (unpacked / "configure").exists():
        return unpacked
    if not shutil.which("apt-get"):
        raise Missing("apt-get source needs Debian or Ubuntu")
    (where / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (where / "deb-src.list").write_text("".join(f"{line}\n" for line in _source_lines()))
    options = ["-o", f"Dir::Etc::SourceList={where}/deb-src.list", "-o", "Dir::Etc::SourceParts=/dev/null",
               "-o", f"Dir::State::Lists={where}/lists"]
    for argv in (["apt-get", *options, "update"],
                 ["apt-get", *options, "source", "--download-only", f"{package}={version}"]):
        done = subprocess.run(argv, cwd=where, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Missing(f"apt-get source {package}={version}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    archive = next(where.glob("*.orig.tar.*"))
    unpacked.mkdir()
    run(["tar", "xf", archive, "-C", unpacked, "--strip-components=1"])
    return unpacked


def _source_lines() -> list:
    """deb-src lines for the archives that this machine takes Debian's packages from."""
    text = "".join(p.read_text() for p in [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]
                   if p.is_file())
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    codename = release.get("VERSION_CODENAME", "stable").strip('"')
    if "deb.debian.org" not in text:
        raise Missing("no deb.debian.org among the package sources: cannot tell where the sources are")
    key = "/usr/share/keyrings/debian-archive-keyring.gpg"
    base = "http://deb.debian.org"
    return [f"deb-src [signed-by={key}] {base}/debian {codename} main",
            f"deb-src [signed-by={key}] {base}/debian {codename}-updates main",
            f"deb-src [signed-by={key}] {base}/debian-security {codename}-security main"]
