"""The OFREP server `fast-feature` with one flag, as its documentation mounts it.

    python -m bench.peers.fast_feature_server PORT

It checks no key and records nothing. Its log of requests is off, and it has uvloop and httptools.
"""

import sys

import uvicorn
from fast_feature.core import Flag
from fast_feature.ofrep import OfrepRouter
from fast_feature.storage.inmemory import (
    InMemoryFlagRepository,
)
from fastapi import FastAPI


def main(port: int) -> None:
    """Serve the flag."""
    split = {"fractional": [["v6", 50], ["v7", 50]]}
    flag = Flag(
        key="ranker",
        variants={"v6": {"model": "models:/ranker/6"}, "v7": {"model": "models:/ranker/7"}},
        default_variant="v6",
        targeting={"if": [{"in": [{"var": "country"}, ["DE", "AT"]]}, split, "v6"]},
    )
    app = FastAPI()
    app.include_router(OfrepRouter.build(InMemoryFlagRepository([flag])))
    uvicorn.run(
        app, port=port, loop="uvloop", http="httptools", access_log=False, log_level="warning"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
