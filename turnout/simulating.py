"""The command `simulate`: plays an experiment of a file against what is said to be true."""

import argparse
import os

import msgspec

from analysis.simulation.many import simulate
from analysis.simulation.page import page
from analysis.simulation.world import Scene, read_scene
from experiments.problems import ProblemError
from turnout.client import ClientError, read_definitions
from turnout.progress import show_progress
from turnout.sim_flags import MOST_RUNS


def run(options: argparse.Namespace) -> str:
    """Play, and tell what came of it.

    Raises:
        ClientError: where the file or an option is wrong; it names every wrong field.
    """
    for name, value, most in (("runs", options.runs, MOST_RUNS), ("jobs", options.jobs, 1_024)):
        if value is not None and not 1 <= value <= most:
            raise ClientError(f"--{name}: must be from 1 to {most:,}")
    if options.seed < 0:
        raise ClientError("--seed: must be 0 or above")
    scene = _scene(options.file)
    jobs = options.jobs or len(os.sched_getaffinity(0))
    found = simulate(scene, options.runs, options.seed, jobs, show_progress)
    if options.json:
        return msgspec.json.encode(found).decode() + "\n"
    return "\n".join(page(scene, found, options.seed)) + "\n"


def _scene(file: str) -> Scene:
    documents = read_definitions(file)
    if len(documents) != 1:
        raise ClientError(f"{file} has {len(documents)} experiments; one is played at a time")
    try:
        return read_scene(documents[0])
    except ProblemError as error:
        wrong = "; ".join(f"{p.path}: {p.detail}" for p in error.errors)
        raise ClientError(f"{file}: {wrong or error.detail}") from error
