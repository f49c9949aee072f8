"""A small disk for a process: a file system in memory that only it sees, and that ends with it."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

SIZE: Final = "1m"
_MOUNT: Final = f'mkdir -p "$0" && mount -t tmpfs -o size={SIZE} tmpfs "$0" && exec "$@"'


def with_small_disk(folder: Path) -> Sequence[str]:
    """The command that runs another one so that this folder is a small disk.

    The test is skipped where that is not allowed.
    """
    unshare = shutil.which("unshare")
    if unshare is None:  # not every system has it, and a mount needs a namespace of its own
        pytest.skip("a small disk needs the program unshare")
    # As a user of its own, who is root there, so that it works for everybody.
    command = (unshare, "--user", "--map-root-user", "--mount", "/bin/sh", "-c", _MOUNT, folder)
    tried = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {tried.stderr.strip()}")
    return [str(word) for word in command]


class SmallDisk:
    """The disk of a running process, seen from outside."""

    def __init__(self, pid: int, folder: Path) -> None:
        self._filler = Path(f"/proc/{pid}/root{folder}/filler")

    def fill(self) -> None:
        """Leave no byte free."""
        with self._filler.open("ab", buffering=0) as filler:
            for size in (65_536, 1):
                try:
                    while True:
                        filler.write(bytes(size))
                except OSError:
                    continue

    def free(self) -> None:
        """Give the space back."""
        os.unlink(self._filler)
