"""The hub's database as every released program left it, brought up to this one's schema with all that is in it."""

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from push_builders import audit_records, batch_of, let_in
from sqlalchemy import text
from store_builders import START

from exitguard.store.hub import HubStore
from exitguard.store.hub_database import open_hub_database
from exitguard.store.hub_tables import HEAD_REVISION, metadata


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "exitguard.store:hub_migrations")
    return config


def _revisions() -> list[str]:
    return [each.revision for each in ScriptDirectory.from_config(_config()).walk_revisions()][::-1]


EARLIER = _revisions()[:-1]


def test_the_newest_revision_is_the_one_that_this_program_wants() -> None:
    assert _revisions()[-1] == HEAD_REVISION


@pytest.mark.parametrize("revision", EARLIER)
def test_a_database_of_an_earlier_program_is_brought_up_with_what_is_in_it(
    hub_database: str, revision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(f"{open_hub_database.__module__}.HEAD_REVISION", revision)
        open_hub_database(hub_database).close()
    database = open_hub_database(hub_database)
    with database.transaction() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == HEAD_REVISION
        for table in metadata.tables.values():
            connection.execute(table.select().limit(1))
    database.close()


def test_what_an_earlier_program_took_is_still_told(hub_database: str) -> None:
    with HubStore.open(hub_database) as store:
        let_in(store, 1)
        store.take(batch_of(1, audit_records(1, 1, START)), received_at=START)
    _down_to_the_first(hub_database)
    with HubStore.open(hub_database) as store:
        (told,) = store.reports()
        assert (told.observed_at, told.savings) == (START, None)


def _down_to_the_first(where: str) -> None:
    """What the first program would have left: the tables that came later are gone, and the rest stays."""
    database = open_hub_database(where)
    with database.transaction(write=True) as connection:
        connection.execute(text("DROP TABLE savings"))
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    database.close()
