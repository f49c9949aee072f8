"""Keys and projects as lines on a terminal."""

from datetime import datetime

from experiments.keys import ApiKey
from experiments.projects import Project


def key_line(key: ApiKey) -> str:
    """A key without its secret."""
    parts = [
        f"{key.id}  {key.role:8}",
        f"expires {_time(key.expires_at)}",
        f"used {_time(key.last_used_at)}",
        f"by {key.created_by or 'unknown'}",
    ]
    if key.scope is not None:
        parts.append(f"scope {','.join(key.scope)}")
    if key.rate_limit is not None:
        parts.append(f"limit {key.rate_limit}/s")
    return "  ".join((*parts, key.note)).rstrip()


def project_line(project: Project, live_keys: int | None = None) -> str:
    """A project with its settings, and the number of its live keys where that was counted."""
    parts = [f"units {project.units}", f"default type {project.default_unit_type}"]
    if project.origins:
        parts.append(f"origins {' '.join(project.origins)}")
    if project.approvals:
        parts.append(f"approvals {' '.join(project.approvals)}")
    if live_keys is not None:
        parts.append(f"{live_keys} live key{'' if live_keys == 1 else 's'}")
    return f"project {project.key}: {', '.join(parts)}"


def _time(at: datetime | None) -> str:
    return "never" if at is None else f"{at:%Y-%m-%d %H:%M}"
