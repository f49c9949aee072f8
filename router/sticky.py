"""Sticky assignment: a unit keeps its first variant, whatever becomes of the weights (DESIGN 5).

First variants are in Redis, and an answer waits for them for a few milliseconds only. So that many
requests cost little, and a slow Redis costs no more than that wait:

- Questions are gathered: all of a turn of the event loop go on one trip, which is one command.
- At most `TRIPS` trips are on their way, each on a connection of its own; what is asked meanwhile
  goes on the next one.
- A trip goes on when those who asked have gone: its answer is read, and its connection is good for
  the next. Only one that is not back after `LONGEST_TRIP` is given up, and its connection with it.
- When answers stay away for `BEARABLE` times the patience, nobody asks for `PAUSE` seconds: slots
  decide at once.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any, Final, TypeAlias

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from experiments.firsts import first_name
from router.assign import Assignment, Why
from router.metrics import RouterMetrics
from router.snapshot import Entry, ProjectSnapshot

KEPT_SECONDS: Final = 180 * 24 * 3600
"""For how long a variant is kept for a unit that does not come back."""
MAX_WAITING: Final = 256
"""Questions that wait for a trip at once; those beyond it are answered by the slot."""

UNITS_A_TRIP: Final = 100
"""How many units one trip asks for, at most: less than a millisecond of anybody's time."""
TRIPS: Final = 4
LONGEST_TRIP: Final = 1.0
BEARABLE: Final = 3
PAUSE: Final = 1.0

_LAST_TURNS: Final = 4
"""From bytes in a socket to whoever waits for what they say, in turns of the event loop."""

# One command, and so one moment: whichever of two routers comes first, both answer the same. The
# time for which a first variant is kept begins anew whenever its unit comes.
_MEET: Final = """
local found = {}
for i, name in ipairs(KEYS) do
  local first = redis.call('GET', name)
  if first then
    redis.call('EXPIRE', name, ARGV[1])
  elseif ARGV[i + 1] ~= '' then
    redis.call('SET', name, ARGV[i + 1], 'EX', ARGV[1])
  end
  found[i] = first
end
return found
"""

_STICKS: Final[frozenset[Why]] = frozenset({"split", "not_enrolled"})
_Asked: TypeAlias = tuple[str, bytes]
"""Where a unit's first variant is kept, and what to keep there if nothing is; empty for nothing."""
_Found: TypeAlias = Sequence[bytes | None]

logger = logging.getLogger(__name__)


class First(msgspec.Struct, frozen=True, array_like=True):
    """What is stored of a unit: its first variant, and under which epoch and propensity."""

    variant: str
    epoch: int
    propensity: float


class _Question(msgspec.Struct, frozen=True):
    """Some units, and what is found of them; None where there is no answer in time."""

    asked: Sequence[_Asked]
    answer: asyncio.Future[_Found | None]


_decoder = msgspec.json.Decoder(First)


def sticks(entry: Entry, answer: Assignment) -> bool:
    """Whether what is stored of the unit decides: it does unless something else keeps it out."""
    return entry.sticky and answer.reason in _STICKS


class Sticky:
    """Units' first variants, in Redis."""

    def __init__(self, redis: Redis, metrics: RouterMetrics, patience: float) -> None:
        """`patience` is how many seconds an answer waits; after that the slot decides.

        `redis` has `TRIPS` connections or more that nobody else uses, and gives each call up after
        a while: `longest_trip(patience)` seconds.
        """
        self._redis = redis
        self._patience = patience
        self._metrics = metrics
        self._soon: deque[_Question] = deque()
        self._seats = asyncio.Semaphore(TRIPS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._missing_since: float | None = None
        self._paused_until = 0.0

    async def close(self) -> None:
        """Give up what is on its way. Nobody may be waiting any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def settle(
        self, project: ProjectSnapshot, entry: Entry, unit: str, answer: Assignment, *, keep: bool
    ) -> Assignment:
        """The unit's first variant where one is stored; else the answer by its slot, which is
        stored as the first where `keep` says so and the unit is enrolled.

        Where Redis does not answer in time, the slot decides.
        """
        found = await self._ask([_asked(project, entry, unit, answer, keep)])
        if found is None:
            return self._fallback(entry, answer)
        return _stuck(entry, answer, found[0])

    async def settle_all(
        self,
        project: ProjectSnapshot,
        entry: Entry,
        units: Sequence[str],
        answers: Sequence[Assignment],
        *,
        keep: bool,
    ) -> list[Assignment]:
        """`settle` for many units, in few trips; after one that fails the slots decide."""
        settled = [*answers]
        waiting = [index for index, answer in enumerate(answers) if sticks(entry, answer)]
        for start in range(0, len(waiting), UNITS_A_TRIP):
            some = waiting[start : start + UNITS_A_TRIP]
            found = await self._ask(
                [_asked(project, entry, units[i], answers[i], keep) for i in some]
            )
            if found is None:
                for index in waiting[start:]:
                    self._fallback(entry, answers[index])
                break
            for index, stored in zip(some, found, strict=True):
                settled[index] = _stuck(entry, answers[index], stored)
        return settled

    async def _ask(self, asked: Sequence[_Asked]) -> _Found | None:
        """What is stored of units, at most `UNITS_A_TRIP` of them; None where there is no answer
        in time. It goes together with all other questions of this turn."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._paused_until or len(self._soon) >= MAX_WAITING:
            return None
        if not self._soon:
            self._begin(self._carry())
        question = _Question(asked, loop.create_future())
        self._soon.append(question)
        timer = loop.call_later(self._patience, _give_up, question, _LAST_TURNS)
        try:
            found = await question.answer
        finally:
            timer.cancel()
        if found is None:
            self._miss(loop.time())
        else:
            self._missing_since = None
        return found

    async def _carry(self) -> None:
        """Take along those who wait, once there is a seat: until then more may come."""
        await self._seats.acquire()
        some = self._board()
        if self._soon:
            self._begin(self._carry())
        found = await self._travel([asked for question in some for asked in question.asked])
        first = 0
        for question in some:
            end = first + len(question.asked)
            if not question.answer.done():
                question.answer.set_result(None if found is None else found[first:end])
            first = end

    def _board(self) -> list[_Question]:
        """Those who go on the next trip: the first that still wait."""
        some: list[_Question] = []
        units = 0
        while self._soon and units + len(self._soon[0].asked) <= UNITS_A_TRIP:
            question = self._soon.popleft()
            if not question.answer.done():
                some.append(question)
                units += len(question.asked)
        return some

    async def _travel(self, asked: Sequence[_Asked]) -> _Found | None:
        """Ask Redis, on a seat that is ours, and leave it."""
        names, firsts = [name for name, _ in asked], [first for _, first in asked]
        try:
            if not names:
                return []
            found: _Found = await self._redis.eval(_MEET, len(names), *names, KEPT_SECONDS, *firsts)
        except (RedisError, OSError, TimeoutError):
            return None
        except Exception:  # whatever it is, the slots are there to go on with
            logger.exception("a defect in a question to Redis")
            return None
        finally:
            self._seats.release()
        return found

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _miss(self, now: float) -> None:
        """An answer has stayed away. Those that wait at the same time do so for one reason, so what
        counts is for how long none came."""
        if self._missing_since is None:
            self._missing_since = now
        elif now - self._missing_since >= BEARABLE * self._patience:
            self._paused_until = now + PAUSE

    def _fallback(self, entry: Entry, answer: Assignment) -> Assignment:
        self._metrics.unstuck.add(entry.project, entry.key)
        return answer


def longest_trip(patience: float) -> float:
    """After how many seconds a call to Redis is to be given up, where an answer waits `patience`
    seconds. It is longer, since whoever gives a call up loses the connection."""
    return max(LONGEST_TRIP, patience)


def _give_up(question: _Question, turns: int) -> None:
    """End a wait. This process may have been busy for so long, with the answer in the socket: some
    turns of the event loop let it in."""
    if question.answer.done():
        return
    if turns:
        asyncio.get_running_loop().call_soon(_give_up, question, turns - 1)
    else:
        question.answer.set_result(None)


def _asked(
    project: ProjectSnapshot, entry: Entry, unit: str, answer: Assignment, keep: bool
) -> _Asked:
    stored = project.stored(entry.unit_type, unit)
    name = first_name(project.sticky_id, entry.experiment, entry.run, stored)
    if not keep or not answer.enrolled or answer.propensity is None:
        return name, b""
    return name, msgspec.json.encode(First(answer.arm.key, answer.epoch, answer.propensity))


def _stuck(entry: Entry, answer: Assignment, stored: bytes | None) -> Assignment:
    """The answer by what is stored, if there is something, it can be read and names a variant that
    is not rolled back. What is stored stays: the unit is of its variant again once that is resumed.
    """
    if stored is None:
        return answer
    try:
        first = _decoder.decode(stored)
    except msgspec.DecodeError:
        return answer
    if first.epoch == entry.epoch and answer.enrolled and first.variant == answer.arm.key:
        return answer  # the slot says the same
    arm = next((arm for arm in entry.arms if arm.key == first.variant), None)
    if arm is None or arm.key in entry.rolled_back:
        return answer
    return msgspec.structs.replace(
        answer, arm=arm, reason="sticky", epoch=first.epoch, propensity=first.propensity
    )
