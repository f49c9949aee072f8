"""The command `turnout` as an operator runs it: real processes, with an environment of our own."""

import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from turnout.embedded.folder import Folder, orphans
from turnout.settings import Process

TURNOUT = Path(sys.executable).parent / "turnout"
PATIENCE = 120.0  # a bound, not a wait: machines that run tests may be busy

PLAIN = ssl.create_default_context()
"""For clients of ours, which speak plain HTTP: each would read all certificates for a context of
its own, which takes longer than its requests."""

Variables = Mapping[str, str]


def until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Poll until the condition holds; a failure names what never came."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.02)


def clean_environment(variables: Variables | None = None) -> dict[str, str]:
    """Ours, without the settings of whoever runs the tests."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("TURNOUT_")}
    return inherited | dict(variables or {})


def turnout(
    *arguments: str | Path, variables: Variables | None = None, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [TURNOUT, *arguments],
        env=clean_environment(variables),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def done(*arguments: str | Path, variables: Variables | None = None, stdin: str = "") -> str:
    """What a command prints that must end well and say nothing else."""
    result = turnout(*arguments, variables=variables, stdin=stdin)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def refusal(*arguments: str | Path, variables: Variables | None = None) -> str:
    """Why a command cannot run: status 2 and exactly one line."""
    result = turnout(*arguments, variables=variables)
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert re.fullmatch(r"turnout: [^\n]+\n", result.stderr), result.stderr
    return result.stderr.removeprefix("turnout: ").rstrip("\n")


class Up:
    """A `turnout up`, `serve` or `worker` that runs."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        data_dir: Path,
        printed: Path,
        logged: Path,
        workers: int = 1,
    ) -> None:
        """Made by `up`. `workers` are those that share its port."""
        self.process = process
        self.data_dir = data_dir
        self.workers = workers
        self._printed = printed
        self._logged = logged
        self.url = ""
        self.admin_key = ""

    @property
    def printed(self) -> list[str]:
        """The whole lines on standard output."""
        return self._printed.read_text().split("\n")[:-1]

    @property
    def logged(self) -> str:
        """Standard error."""
        return self._logged.read_text()

    @property
    def strays(self) -> list[str]:
        """What stands on standard error that is neither a line of the log nor our last word."""
        return [
            line for line in self.logged.splitlines() if not line.startswith(("{", "turnout: "))
        ]

    def wait_until_served(self) -> None:
        """Wait for the address, and read the key if there is one."""

        def says_where() -> bool:
            assert self.process.poll() is None, f"it ended: {self.logged}"
            return any("serves on" in line for line in self.printed)

        until(says_where, "it serves")
        for line in self.printed:
            last = line.rsplit(" ", 1)[-1]
            if line.startswith("Admin key of project "):
                self.admin_key = last
            elif line.startswith("Turnout serves on "):
                self.url = last

    def client(self, key: str) -> httpx.Client:
        """A client with a key. It keeps its connection, and with it the worker that it met."""
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, verify=PLAIN)

    def until_all_know(
        self,
        key: str,
        ask: Callable[[httpx.Client], httpx.Response],
        knows: Callable[[httpx.Response], bool],
        what: str,
    ) -> None:
        """Wait until each of its workers has given an answer that shows that it knows of a change.

        A change reaches each of them in its own time, and what one of them says is no word of the
        others. Every request has a connection of its own, so that the kernel deals it to any of
        them. What one has heard of it does not forget: one such answer of each is proof.
        """
        know: set[str] = set()

        def all_know() -> bool:
            with self.client(key) as client:
                answer = ask(client)
            if knows(answer):
                know.add(worker_of(answer.headers))
            return len(know) >= self.workers

        until(all_know, f"all know: {what}")

    def metric(self, name: str) -> float:
        """A metric, as Prometheus would read it; its name is a pattern."""
        text = httpx.get(f"{self.url}/metrics", timeout=30, verify=PLAIN).text
        return float(re.findall(rf"^{name} (\S+)$", text, re.MULTILINE)[0])

    def kill(self) -> None:
        """`kill -9`."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def stop(self, signum: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end; its exit status."""
        self.process.send_signal(signum)
        return self.process.wait(PATIENCE)


@contextmanager
def launched(
    data_dir: Path,
    *flags: str | Path,
    variables: Variables | None = None,
    command: Process = "up",
    name: str = "",
) -> Iterator[Up]:
    """A process on any free port that has only just been started. It is gone afterwards, and so are
    its servers. Those on one data folder need names, which tell their output apart."""
    stem = f"{data_dir.name}{name and '-'}{name}"
    printed, logged = (data_dir.with_name(f"{stem}.{end}") for end in ("out", "err"))
    with (
        printed.open("wb") as out,
        logged.open("wb") as err,
        subprocess.Popen(
            [TURNOUT, command, "--port", "0", "--data-dir", data_dir, *flags],
            env=clean_environment(variables),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        ) as process,
    ):
        try:
            workers = int(str(flags[flags.index("--workers") + 1])) if "--workers" in flags else 1
            yield Up(process, data_dir, printed, logged, workers)
            if process.poll() is None:
                process.terminate()
                process.wait(PATIENCE)
        finally:
            process.kill()
            until(lambda: not servers_of(data_dir), "its servers have ended")


@contextmanager
def up(
    data_dir: Path,
    *flags: str | Path,
    variables: Variables | None = None,
    command: Process = "up",
    name: str = "",
) -> Iterator[Up]:
    """A process that serves."""
    with launched(data_dir, *flags, variables=variables, command=command, name=name) as service:
        service.wait_until_served()
        yield service


def servers_of(data_dir: Path) -> dict[int, str]:
    """The servers that run on a data folder: pid and program."""
    return orphans(Folder(root=data_dir))


def worker_of(headers: Mapping[str, str]) -> str:
    """The worker whose answer has these headers: the ids of a worker's requests begin alike."""
    return headers["X-Request-Id"][:16]


def journals_in(data_dir: Path) -> list[Path]:
    """The folders of the journals in a data folder."""
    return sorted((data_dir / "journals").iterdir())


def children_of(pid: int) -> set[str]:
    """The programs that a process has started and that still run."""
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found.add(Path(f"/proc/{child}/exe").readlink().name)
    return found


def checked(response: httpx.Response) -> Any:
    """The body of an answer that must be good."""
    assert response.is_success, response.text
    return response.json()
