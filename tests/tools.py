"""The programs that some tests use, and where they are: nginx, HAProxy, Prometheus, promtool.

    python -m tests.tools

fetches those that the machine lacks into `.venv/tools`, where Debian has them. Its packages are
unpacked there and not installed: no daemon starts, nothing else on the machine changes, and nobody
needs to be root. What cannot be had is named, and tests that need it are skipped.
"""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

FETCHED: Final = Path(sys.prefix) / "tools"
"""Where what the machine lacks is unpacked: in the virtual environment, if that is in use."""

_PACKAGES: Final = {
    "nginx": "nginx",
    "haproxy": "haproxy",
    "prometheus": "prometheus",
    "promtool": "prometheus",
}
_VERSION: Final = {
    "nginx": "-v",
    "haproxy": "-v",
    "prometheus": "--version",
    "promtool": "--version",
}
_FOLDERS: Final = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
_FETCH_SECONDS: Final = 100.0


def find(name: str) -> Path | None:
    """Where a program is, on the machine or fetched; None where it is not."""
    found = shutil.which(name, path=_FOLDERS) or shutil.which(name, path=str(FETCHED / "bin"))
    return None if found is None else Path(found)


def tool(name: str) -> Path:
    """Where a program is. A test that asks for one which is not there is skipped, and says so."""
    found = find(name)
    if found is None:
        pytest.skip(f"{name} is not installed, and `make tools` could not fetch it")
    return found


def fetch(names: Sequence[str], into: Path) -> None:
    """Download programs, with the libraries that the machine lacks, and unpack them.

    Args:
        into: gets `bin/NAME` for each, a script that starts it with its libraries.

    Raises:
        OSError: if there is no apt, or no room.
        subprocess.SubprocessError: if a package cannot be had, or it takes too long.
    """
    shutil.rmtree(into, ignore_errors=True)
    root, binaries = into / "root", into / "bin"
    root.mkdir(parents=True)
    binaries.mkdir()
    packages = sorted({_PACKAGES[name] for name in names})
    with tempfile.TemporaryDirectory() as folder:
        # Lists and downloads of our own, so that those of the machine need neither be there nor be
        # locked; the database of what is installed is only read.
        apt = [
            "apt-get",
            "-qq",
            *("-o", "Debug::NoLocking=1"),
            *("-o", "APT::Sandbox::User=" + _user()),
            *("-o", f"Dir::State::lists={folder}/lists"),
            *("-o", f"Dir::Cache={folder}/cache"),
            *("-o", "Acquire::Languages=none"),
        ]
        for part in ("lists/partial", "cache/archives/partial"):
            (Path(folder) / part).mkdir(parents=True)
        _run([*apt, "update"])
        options = ("--yes", "--no-install-recommends", "--download-only")
        _run([*apt, "install", *options, *packages])
        for package in sorted((Path(folder) / "cache" / "archives").glob("*.deb")):
            _run(["dpkg-deb", "--extract", str(package), str(root)])
    libraries = {str(path.parent) for path in root.rglob("*.so*")}
    for name in names:
        program = next(
            path for part in ("usr/bin", "usr/sbin") if (path := root / part / name).exists()
        )
        starter = binaries / name
        folders = ":".join(sorted(libraries))
        script = f'#!/bin/sh\nLD_LIBRARY_PATH="{folders}" exec "{program}" "$@"\n'
        starter.write_text(script, encoding="utf-8")
        starter.chmod(starter.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
        _run([str(starter), _VERSION[name]])


def main() -> int:
    """Fetch what is lacking. What cannot be had is no failure: the tests say what they skip."""
    lacking = [name for name in _PACKAGES if find(name) is None]
    if not lacking:
        return 0
    try:
        fetch(lacking, FETCHED)
    except (OSError, StopIteration, subprocess.SubprocessError) as error:
        shutil.rmtree(FETCHED, ignore_errors=True)
        said = getattr(error, "stderr", None) or str(error)
        why = " ".join(str(said).split())[:300]
        print(f"Tests with {', '.join(lacking)} will be skipped: cannot be fetched ({why})")
    return 0


def _user() -> str:
    """Who downloads: apt's own user could not write into a folder of ours."""
    return "root" if os.getuid() == 0 else ""


def _run(command: Sequence[str]) -> None:
    subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=_FETCH_SECONDS,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"},
    )


if __name__ == "__main__":
    sys.exit(main())
