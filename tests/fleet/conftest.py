"""The fleet's tests use what those of the store build, and its databases."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))
sys.path.insert(0, str(Path(__file__).parent))

from hub_process import RunningHub
from postgresql_cluster import Cluster, running_cluster


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Cluster]:
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def hub(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    """A hub as a process, for all tests of a module: each lets in hosts of its own."""
    directory = tmp_path_factory.mktemp("hub")
    database = str(directory / "hub.sqlite") if request.param == "sqlite" else request.getfixturevalue("postgresql").new_database()
    with RunningHub(database, directory / "log") as running:
        yield running
