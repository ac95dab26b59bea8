"""Makes store_builders.py importable for the tests here, as the programs that they start find it; and the databases of a hub."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from postgresql_cluster import Cluster, running_cluster


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Cluster]:
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture(params=["sqlite", "postgresql"])
def hub_database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a hub may keep what it knows: an empty database of either kind."""
    if request.param == "sqlite":
        return str(tmp_path / "hub.sqlite")
    cluster: Cluster = request.getfixturevalue("postgresql")
    return cluster.new_database()
