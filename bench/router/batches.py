"""How many assignments a second `POST /v1/assign/batch` makes on a core, without HTTP and disk.

    python -m bench.router.batches ROUNDS

That is from the bytes of a body to those of its answer: reading, checking, deciding, encoding. It
prints the rates as JSON, by the shape of the request.
"""

import asyncio
import gc
import json
import sys
import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec
import uvloop

from bench.router.evaluator import live
from bench.router.scene import DEFINITION
from experiments.records import Publication
from router.assign import Assignment, assign
from router.batch import decide, read_assign_batch
from router.snapshot import Entry, ProjectSnapshot, compile_project

PAIRS: Final = 10_000
_REPEATS: Final = 20


class Shape(NamedTuple):
    """So many experiments, with a targeting rule or without, in a request of `PAIRS` pairs."""

    experiments: int
    targeted: bool

    @property
    def name(self) -> str:
        """How its line is called."""
        units = PAIRS // self.experiments
        targeted = ", with targeting" if self.targeted else ""
        return f"{units:,} units x {self.experiments} experiments{targeted}"


SHAPES: Final = (Shape(1, False), Shape(10, False), Shape(100, False), Shape(10, True))


async def project_of(shape: Shape) -> ProjectSnapshot:
    """A project with these experiments."""
    targeting = DEFINITION["targeting"] if shape.targeted else None
    definitions: list[dict[str, Any]] = [
        {**DEFINITION, "key": f"ranker-{number}", "targeting": targeting}
        for number in range(shape.experiments)
    ]
    return await compile_project(
        Publication(
            project="default",
            version=1,
            default_unit_type="user",
            keys=(),
            experiments=tuple(live(definition) for definition in definitions),
            unit_key=None,
            erasures=0,
            sticky_id="a1b2",
        )
    )


def body_of(shape: Shape, first_unit: int) -> bytes:
    """A request for all experiments of the project."""
    ids = [f"user-{first_unit + number:09}" for number in range(PAIRS // shape.experiments)]
    units: list[Any] = [*ids]
    if shape.targeted:
        units = [{"unit": unit, "attributes": {"country": "DE"}} for unit in ids]
    return msgspec.json.encode({"units": units, "expose": False})


async def rate(project: ProjectSnapshot, bodies: Sequence[bytes]) -> float:
    """Assignments a second."""
    gc.collect()
    begun = time.perf_counter()
    for body in bodies:
        plan = await decide(await read_assign_batch(body, project), assign, _unstuck)
        plan.answer(recorded=False)
    return len(bodies) * PAIRS / (time.perf_counter() - begun)


async def _unstuck(
    _: Entry, units: Sequence[str], answers: Sequence[Assignment]
) -> Sequence[Assignment]:
    raise RuntimeError(f"no experiment of these is sticky, but {len(units)} units are asked for")


async def measure(rounds: int) -> dict[str, list[float]]:
    """The rates of each round, by the names of the shapes, which take turns."""
    found: dict[str, list[float]] = {shape.name: [] for shape in SHAPES}
    projects = {shape: await project_of(shape) for shape in SHAPES}
    for number in range(rounds):
        for shape, project in projects.items():
            first_unit = number * _REPEATS * PAIRS
            bodies = [body_of(shape, first_unit + i * PAIRS) for i in range(_REPEATS)]
            found[shape.name].append(await rate(project, bodies))
    return found


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(measure(int(sys.argv[1])))))
