"""A project's own settings as an act: to demand less approval takes one, of another admin."""

from typing import Final

import msgspec
from msgspec import UNSET

from experiments import projects, store
from experiments.lifecycle import Change
from experiments.once import Answer
from experiments.projects import ProjectChange
from experiments.proposals.acts import Act, Asked, Done, Subject
from experiments.proposals.model import Demand
from experiments.writes import ControlPlane


async def _lock(connection: store.Connection, project: str, _: str | None) -> Subject:
    await store.enter_alone(connection, project)  # before the project's row, as all others have it
    return Subject(None, 0, 0, 0)


async def _demand(connection: store.Connection, _: Subject, asked: Asked) -> Demand | None:
    body: ProjectChange = asked.body
    if body.approvals is UNSET:
        return None
    before = await projects.approvals_of(connection, asked.project)
    return None if before <= set(body.approvals) else "approvals"


async def _carry_out(
    connection: store.Connection, control: ControlPlane, _: Subject, asked: Asked, __: Change
) -> Done:
    body: ProjectChange = asked.body
    after = await projects.change_project(connection, asked.project, body, control.random_bytes)
    return Done(Answer(200, {}, msgspec.json.encode(after)), changed=True)


SETTINGS: Final = Act("settings", ProjectChange, _lock, _demand, _carry_out, "administer")
ACTS: Final[tuple[Act, ...]] = (SETTINGS,)
