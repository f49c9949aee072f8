"""`turnout serve --workers N`: N routers on one port, and the parent that keeps them running.

The parent serves nobody. It binds the port, forks the workers, starts again those that die, adds up
their metrics, and passes on the wish to stop. It is a plain loop without threads, so that a fork
takes nothing along that it could not use: each worker makes an event loop, a journal and
connections of its own, and shares with the others what was loaded before the fork, which is most of
its memory.

**Each worker has a listening socket of its own on the port** (SO_REUSEPORT), among which the kernel
deals connections out by a hash of their addresses. From one common socket whoever wakes up first
takes all that wait, and connections that are kept alive stay where they are: of 64 that were opened
at once, two of four workers got none. What is held against sockets of their own is that what waits
at one is lost with its worker. So the parent keeps them all: the next worker goes on with the
socket of the one that died, and with what waits there. Only if that one dies soon as well, its
socket is closed, so that all connections go to the others.

**Nobody outlives the parent**: the kernel asks each worker to stop when it dies, however it does.
"""

import contextlib
import gc
import logging
import os
import selectors
import shutil
import signal
import socket
import sys
import tempfile
import time
from asyncio import Runner
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Final

import msgspec
import uvloop

from turnout.backends import CannotRunError
from turnout.embedded.folder import SOCKETS_PARENT, SOCKETS_PREFIX
from turnout.embedded.launch import die_with
from turnout.logs import said
from turnout.migrate import MigrationError
from turnout.seat import Seat, parent_socket, worker_socket
from turnout.serving import listen, url_of
from turnout.settings import Settings
from turnout.signals import stop_at_signal
from turnout.sums import Families, Family, Sample, Sums

STOP_SECONDS: Final = 30.0
"""For a worker to drain, to ship and to close; then it is killed, and others ship its journal."""
GATHER_SECONDS: Final = 1.0
"""For all workers to tell their metrics. Of those that do not, the last that they told counts."""
SHORTEST_WAIT: Final = 0.1
LONGEST_WAIT: Final = 10.0
STEADY_SECONDS: Final = 30.0
"""After so long a life the next death is the first one again."""

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
_READY: Final = b"\0"
_TO_TELL: Final = 5.0
_LEAST_TURN: Final = 0.05
_DEFECT: Final = 1

logger = logging.getLogger(__name__)


class _Worker(msgspec.Struct):
    """A worker that runs. `words` is the pipe in which it says that it serves, or why it cannot."""

    number: int
    pid: int
    words: int
    born: float
    serves: bool = False
    said: bytes = b""


def run_fleet(settings: Settings, announce: Callable[[str], None]) -> None:
    """Run the workers until a signal says to stop.

    Args:
        announce: takes the lines that an operator should see. The workers have it, too.

    Raises:
        CannotRunError: if a worker ends before all have begun to serve, or one did not stop.
    """
    # Here, before the forks, so that all workers share it: with it come numpy and scipy.
    from turnout.service import run  # noqa: PLC0415

    if settings.otlp_endpoint:
        # It begins nothing: each worker has a tracer of its own, and a thread that exports.
        import turnout.otlp  # noqa: F401, PLC0415

    def work(seat: Seat) -> None:
        share = msgspec.structs.replace(
            settings,
            # One disk holds the journals of all.
            journal_limit_mib=max(1, settings.journal_limit_mib // settings.workers),
        )

        async def serve() -> None:
            await run(share, announce, stop_at_signal(), "serve", seat)

        with Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())

    # It finds a free port, or another process on ours: who shares a port is not told of others.
    with listen(settings.host, settings.port) as found:
        port, url = found.getsockname()[1], url_of(found)
    with _run_folder() as folder, _signals() as signals:
        new_listener = partial(listen, settings.host, port, shared=True)
        fleet = _Fleet(settings.workers, new_listener, folder, signals, work)
        gc.collect()
        gc.freeze()  # a collection in a worker would make copies of what all share
        try:
            if fleet.start():
                announce(f"Turnout serves on {url}")
                fleet.keep()
        finally:
            fleet.stop()


class _Fleet:
    """The parent of the workers."""

    def __init__(
        self,
        size: int,
        new_listener: Callable[[], socket.socket],
        folder: Path,
        signals: socket.socket,
        work: Callable[[Seat], None],
    ) -> None:
        self._size = size
        self._new_listener = new_listener
        self._folder = folder
        self._signals = signals
        self._work = work
        self._workers: dict[int, _Worker] = {}
        self._listeners: dict[int, socket.socket] = {}
        self._deaths = dict.fromkeys(range(size), 0)
        self._due: dict[int, float] = {}
        self._restarts = 0
        self._silences = 0
        self._stopping = False
        self._sums = Sums()
        self._telling = socket.socket(socket.AF_UNIX)
        self._selector = selectors.DefaultSelector()

    def start(self) -> bool:
        """Start all workers, and wait until all serve; False if a signal says to stop before.

        The first one migrates the database and makes the first key before there are others.

        Raises:
            CannotRunError: if one ends before.
        """
        self._telling.bind(str(parent_socket(self._folder)))
        self._telling.listen()
        self._telling.setblocking(False)
        self._selector.register(self._telling, selectors.EVENT_READ, self._tell)
        self._selector.register(self._signals, selectors.EVENT_READ, self._heed)
        for numbers in (range(1), range(1, self._size)):
            if self._stopping:
                return False
            for number in numbers:
                self._listeners[number] = self._new_listener()
                self._fork(number)
            while not self._stopping and not all(w.serves for w in self._workers.values()):
                for worker, end in self._turn():
                    if not self._stopping:
                        raise CannotRunError(_line(worker) or f"a worker {end} before all served")
        return not self._stopping

    def keep(self) -> None:
        """Start again whoever dies, until a signal says to stop."""
        while not self._stopping:
            for worker, end in self._turn():
                steady = time.monotonic() - worker.born > STEADY_SECONDS
                deaths = 0 if steady else self._deaths[worker.number]
                self._deaths[worker.number] = deaths + 1
                if deaths:
                    self._listeners.pop(worker.number).close()
                wait = min(LONGEST_WAIT, SHORTEST_WAIT * 2.0**deaths)
                self._due[worker.number] = time.monotonic() + wait
                logger.error(
                    "worker ended",
                    extra={
                        "worker": worker.number,
                        "pid": worker.pid,
                        "end": end,
                        "reason": _line(worker),
                        "again_in": wait,
                    },
                )
            for number, at in list(self._due.items()):
                if at <= time.monotonic() and not self._stopping:
                    del self._due[number]
                    self._restarts += 1
                    self._start_again(number)

    def stop(self) -> None:
        """Ask all workers to stop, and wait for them.

        Raises:
            CannotRunError: if some had to be killed, and nothing else is wrong.
        """
        self._stopping = True
        self._close_listeners()  # once its worker has closed one, too, connections are refused
        self._signal_all(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while self._workers and time.monotonic() < deadline:
            self._turn()
        late = len(self._workers)
        self._signal_all(signal.SIGKILL)
        while self._workers:
            self._turn()
        self._selector.close()
        self._telling.close()
        if late and sys.exc_info()[0] is None:
            raise CannotRunError(
                f"{late} workers did not stop within {STOP_SECONDS:.0f} s and were killed; the next"
                " start ships what they acknowledged"
            )

    def _turn(self) -> list[tuple[_Worker, str]]:
        """Wait for something to happen, for a moment at most; who has ended meanwhile, and how."""
        wait = min([1.0, *(at - time.monotonic() for at in self._due.values())])
        for key, _ in self._selector.select(max(0.0, wait)):
            key.data(key.fileobj)
        ended = []
        for worker in list(self._workers.values()):
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                self._listen_to(worker)
                self._forget(worker)
                ended.append((worker, _how(os.waitstatus_to_exitcode(status))))
        return ended

    def _heed(self, signals: socket.socket) -> None:
        """Take the numbers of the signals that came."""
        with contextlib.suppress(BlockingIOError):
            if {signal.SIGTERM, signal.SIGINT} & set(signals.recv(4096)):
                self._stopping = True

    def _listen_to(self, worker: _Worker) -> None:
        with contextlib.suppress(BlockingIOError):
            while words := os.read(worker.words, 4096):
                worker.said += words
            # It has closed its end: there is nothing more to hear.
            with contextlib.suppress(KeyError):
                self._selector.unregister(worker.words)
        if _READY in worker.said:
            worker.serves = True

    def _forget(self, worker: _Worker) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(worker.words)
        os.close(worker.words)
        del self._workers[worker.number]
        self._sums.bury(worker.pid)

    def _start_again(self, number: int) -> None:
        if number not in self._listeners:
            try:
                self._listeners[number] = self._new_listener()
            except CannotRunError as error:
                logger.error("worker not started", extra={"worker": number, "error": str(error)})
                self._due[number] = time.monotonic() + LONGEST_WAIT
                return
        self._fork(number)

    def _close_listeners(self) -> None:
        for listener in self._listeners.values():
            listener.close()

    def _signal_all(self, signum: signal.Signals) -> None:
        for worker in self._workers.values():
            os.kill(worker.pid, signum)  # it was not waited for, so it is no other's

    def _fork(self, number: int) -> None:
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        # A signal that came between would be taken by the handlers of the parent.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        pid = os.fork()
        if pid == 0:
            self._be_worker(number, parent, reading, writing)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(writing)
        worker = _Worker(number, pid, reading, time.monotonic())
        self._workers[number] = worker
        self._selector.register(reading, selectors.EVENT_READ, lambda _: self._listen_to(worker))

    def _be_worker(self, number: int, parent: int, reading: int, writing: int) -> None:
        """In the new process: work, and end."""
        status = _DEFECT
        try:
            signal.set_wakeup_fd(-1)
            for signum in _SIGNALS:
                signal.signal(signum, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            die_with(parent, signal.SIGTERM)
            self._selector.close()
            self._telling.close()
            self._signals.close()
            listener = self._listeners.pop(number)
            self._close_listeners()
            for descriptor in (reading, *(worker.words for worker in self._workers.values())):
                os.close(descriptor)
            status = _worked(
                lambda ready: self._work(Seat(listener, self._folder, number, ready)), writing
            )
            if os.getppid() != parent:  # nobody else is there to do it
                shutil.rmtree(self._folder, ignore_errors=True)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)

    def _tell(self, telling: socket.socket) -> None:
        """Tell the sum of all metrics to who has connected."""
        try:
            asking, _ = telling.accept()
        except OSError:  # it has gone again
            return
        with asking:
            self._gather()
            asking.settimeout(_TO_TELL)
            with contextlib.suppress(OSError):
                asking.sendall(msgspec.msgpack.encode((*self._own(), *self._sums.total())))

    def _own(self) -> Families:
        """The parent's own metrics."""
        return (
            _single("turnout_workers", "Workers that serve", "gauge", "", self._serving()),
            _single(
                "turnout_worker_restarts",
                "Workers that died and were started again",
                "counter",
                "_total",
                self._restarts,
            ),
            _single(
                "turnout_worker_silences",
                "Times that a worker did not tell its metrics in time: it may hang",
                "counter",
                "_total",
                self._silences,
            ),
        )

    def _serving(self) -> int:
        return sum(worker.serves for worker in self._workers.values())

    def _gather(self) -> None:
        """Hear all workers. They are asked at once, so that they answer side by side."""
        deadline = time.monotonic() + GATHER_SECONDS
        with contextlib.ExitStack() as stack:
            asked: list[tuple[int, socket.socket]] = []
            for worker in self._workers.values():
                connection = stack.enter_context(socket.socket(socket.AF_UNIX))
                connection.settimeout(_LEAST_TURN)
                with contextlib.suppress(OSError), self._noting_silence():
                    connection.connect(str(worker_socket(self._folder, worker.number)))
                    asked.append((worker.pid, connection))
            for pid, connection in asked:
                with contextlib.suppress(OSError, msgspec.MsgspecError), self._noting_silence():
                    told = _read_all(connection, deadline)
                    self._sums.hear(pid, msgspec.msgpack.decode(told, type=Families))

    @contextlib.contextmanager
    def _noting_silence(self) -> Iterator[None]:
        """Count it where a worker is there and does not answer. It keeps its share of connections,
        so somebody has to know."""
        try:
            yield
        except (TimeoutError, BlockingIOError):  # the latter where too many have asked in vain
            self._silences += 1
            raise


def _worked(work: Callable[[Callable[[], None]], None], words: int) -> int:
    """Do the work of a worker; its exit status."""

    def say(text: bytes) -> None:
        with contextlib.suppress(OSError):  # there is no parent any more
            os.write(words, text)

    try:
        work(lambda: say(_READY))
    except (CannotRunError, MigrationError) as error:
        say(str(error).encode())
        return 2
    except BaseException as error:
        logger.critical("defect", exc_info=error)
        say(said(error).encode())
        return _DEFECT
    return 0


def _read_all(connection: socket.socket, deadline: float) -> bytes:
    parts: list[bytes] = []
    while True:
        connection.settimeout(max(_LEAST_TURN, deadline - time.monotonic()))
        part = connection.recv(1 << 16)
        if not part:
            return b"".join(parts)
        parts.append(part)


def _single(name: str, text: str, kind: str, suffix: str, value: float) -> Family:
    return Family(name, text, kind, (Sample(name + suffix, {}, float(value)),))


def _line(worker: _Worker) -> str:
    """What it said when it could not go on."""
    return " ".join(worker.said.replace(_READY, b"").decode(errors="replace").split())


def _how(status: int) -> str:
    return f"was killed by signal {-status}" if status < 0 else f"exited {status}"


@contextlib.contextmanager
def _run_folder() -> Iterator[Path]:
    """A folder for sockets, which nobody else can enter. Their paths have to be short."""
    folder = Path(tempfile.mkdtemp(prefix=SOCKETS_PREFIX, dir=SOCKETS_PARENT))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _signals() -> Iterator[socket.socket]:
    """A socket from which the numbers of signals can be read as they come."""

    def nothing(_: int, frame: FrameType | None) -> None:
        """The number is in the socket by now."""

    reading, writing = socket.socketpair()
    with reading, writing:
        reading.setblocking(False)
        writing.setblocking(False)
        signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        before = {signum: signal.signal(signum, nothing) for signum in _SIGNALS}
        try:
            yield reading
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
            signal.set_wakeup_fd(-1)
