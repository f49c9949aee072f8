"""What the tests of whole processes share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.commands import Up, up
from tests.e2e.traffic import QUICK


@pytest.fixture(scope="session")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A service that no test stops."""
    with up(tmp_path_factory.mktemp("serving") / "data", *QUICK) as service:
        yield service


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Where a data folder may be made."""
    return tmp_path / "data"
