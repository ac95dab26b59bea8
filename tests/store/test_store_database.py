"""The database file: new, old, newer, another program's, damaged; migrated by Alembic only where it is needed."""

import logging
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from store_builders import START, judge, minutes, observe

from exitguard.store import tables
from exitguard.store.errors import StoreError, StoreNewer
from exitguard.store.host import HostStore


def recorded(state_dir: Path) -> Path:
    with HostStore.open(state_dir, now=START) as store:
        observation = observe(START)
        store.record(observation, judge(observation))
    return state_dir / "host.sqlite"


def pragma(path: Path, text: str) -> object:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(f"PRAGMA {text}").fetchone()


def test_migrated_database_is_exactly_what_the_tables_say(tmp_path: Path) -> None:
    path = recorded(tmp_path)
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, tables.metadata) == []
        assert context.get_current_revision() == tables.HEAD_REVISION
    engine.dispose()
    with closing(sqlite3.connect(":memory:")) as fresh, closing(sqlite3.connect(path)) as migrated:
        tables_only = create_engine("sqlite://", creator=lambda: fresh)
        tables.metadata.create_all(tables_only)
        # Autogeneration does not see checks, partial indexes and AUTOINCREMENT; the statements themselves do.
        assert normal_schema(migrated) == normal_schema(fresh)


def normal_schema(connection: sqlite3.Connection) -> dict[str, str]:
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' AND name != 'alembic_version'")
    return {name: " ".join(sql.split()) for name, sql in rows}


def test_head_of_the_migrations_is_what_the_tables_say() -> None:
    config = Config()
    config.set_main_option("script_location", "exitguard.store:migrations")
    assert ScriptDirectory.from_config(config).get_heads() == [tables.HEAD_REVISION]


def test_new_database_is_wal_with_our_schema_version(tmp_path: Path) -> None:
    path = recorded(tmp_path)
    assert pragma(path, "journal_mode") == ("wal",)
    assert pragma(path, "user_version") == (tables.SCHEMA_VERSION,)
    with HostStore.open(tmp_path, now=START) as store:
        settings = {
            name: store._database.connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("synchronous", "foreign_keys", "busy_timeout")
        }
    assert settings == {"synchronous": 2, "foreign_keys": 1, "busy_timeout": 5000}


def test_old_database_is_migrated(tmp_path: Path) -> None:
    path = tmp_path / "host.sqlite"
    with closing(sqlite3.connect(path)) as connection:  # what Alembic leaves behind before its first revision
        connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
    (tmp_path / "host-id").write_text("7c0a2f7e-98a5-4a83-9d0f-8a5b8f6c2d11\n")
    with pytest.raises(StoreError, match=r"written by an older exitguard.*run `exitguard audit"):
        HostStore.open(tmp_path, now=START, read_only=True)
    with HostStore.open(tmp_path, now=START) as store:
        observation = observe(START)
        assert store.record(observation, judge(observation)) == store.report()
    assert pragma(path, "user_version") == (tables.SCHEMA_VERSION,)


@pytest.mark.parametrize("read_only", [False, True])
def test_newer_database_is_refused_and_left_untouched(tmp_path: Path, *, read_only: bool) -> None:
    path = recorded(tmp_path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {tables.SCHEMA_VERSION + 1}")
    content = path.read_bytes()
    with pytest.raises(StoreNewer, match=r"schema 6, written by a newer exitguard\. Expected at most 5\..*install the newer"):
        HostStore.open(tmp_path, now=START, read_only=read_only)
    assert path.read_bytes() == content


@pytest.mark.parametrize("read_only", [False, True])
def test_database_of_another_program_is_refused_and_left_untouched(tmp_path: Path, *, read_only: bool) -> None:
    path = tmp_path / "host.sqlite"
    (tmp_path / "host-id").write_text("7c0a2f7e-98a5-4a83-9d0f-8a5b8f6c2d11\n")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE cookies (name)")
    content = path.read_bytes()
    with pytest.raises(StoreError, match=r"another program's database \(tables cookies\)"):
        HostStore.open(tmp_path, now=START, read_only=read_only)
    assert path.read_bytes() == content


@pytest.mark.parametrize("read_only", [False, True])
def test_file_that_is_no_database_is_refused_and_kept(tmp_path: Path, *, read_only: bool) -> None:
    path = recorded(tmp_path)
    path.write_bytes(b"not a database " * 1000)
    with pytest.raises(StoreError, match=r"host\.sqlite: file is not a database.* Expected a SQLite database.*move it"):
        HostStore.open(tmp_path, now=START, read_only=read_only)
    assert path.read_bytes() == b"not a database " * 1000


def test_damaged_database_is_kept_and_the_dropped_observation_noted(tmp_path: Path) -> None:
    path = recorded(tmp_path)
    with closing(sqlite3.connect(path)) as connection:
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
        roots = [page for (page,) in connection.execute("SELECT rootpage FROM sqlite_master WHERE rootpage > 1")]
    content = bytearray(path.read_bytes())
    for page in roots:  # of every table and index, but for that of the schema
        content[(page - 1) * page_bytes : page * page_bytes] = b"\xff" * page_bytes
    path.write_bytes(content)
    with HostStore.open(tmp_path, now=START) as store:
        observation = observe(minutes(5))
        with pytest.raises(StoreError, match=r"malformed.*move it and the files.*shown as a gap"):
            store.record(observation, judge(observation))
    assert path.read_bytes() == content
    path.rename(tmp_path / "host.sqlite.damaged")
    with HostStore.open(tmp_path, now=minutes(10)) as store:
        observation = observe(minutes(10))
        store.record(observation, judge(observation))
        (gap,) = store.gaps(START)
    assert (gap.first_at, gap.last_at, gap.dropped) == (minutes(5), minutes(5), 1)
    assert "malformed" in gap.reason


def test_migration_that_is_interrupted_leaves_an_empty_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("exitguard.store.database.uuid4", interrupt)  # the last step
        with pytest.raises(KeyboardInterrupt):
            HostStore.open(tmp_path, now=START)
    with closing(sqlite3.connect(tmp_path / "host.sqlite")) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    with HostStore.open(tmp_path, now=START) as store:
        assert store.report() is None


def test_alembic_is_imported_for_a_migration_only(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib, datetime\n"
        "from exitguard.store.errors import StoreError\n"
        "assert 'sqlalchemy' not in sys.modules\n"
        "from exitguard.store.host import HostStore\n"
        "with HostStore.open(pathlib.Path(sys.argv[1]), now=datetime.datetime.now(datetime.UTC)) as store: store.report()\n"
        "print('alembic' in sys.modules)\n"
    )
    said = [subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True).stdout for _ in "12"]
    assert said == ["True\n", "False\n"]


def test_migration_leaves_logging_and_the_terminal_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    other = logging.getLogger("of.somebody.else")
    before = (logging.root.level, list(logging.root.handlers), other.disabled)
    HostStore.open(tmp_path, now=START).close()
    assert (logging.root.level, list(logging.root.handlers), other.disabled) == before
    assert capfd.readouterr() == ("", "")


def test_processes_that_create_the_database_together_all_store(tmp_path: Path) -> None:
    program = Path(__file__).with_name("record_and_say.py")
    racers = [
        subprocess.Popen([sys.executable, str(program), str(tmp_path), str(number * 100), "3"], stdout=subprocess.PIPE, text=True)
        for number in range(4)
    ]
    said = sorted(int(line) for racer in racers for line in racer.communicate(timeout=120)[0].split())
    assert said == [number * 100 + step for number in range(4) for step in range(3)]
    with closing(sqlite3.connect(tmp_path / "host.sqlite")) as connection:
        assert connection.execute("SELECT count(*), count(DISTINCT observed_at), max(seq) FROM observation").fetchone() == (12, 12, 12)
        assert connection.execute("SELECT count(*) FROM spool").fetchone() == (1,)


def test_lock_that_is_held_too_long_is_told_and_the_gap_noted(tmp_path: Path) -> None:
    path = recorded(tmp_path)
    with HostStore.open(tmp_path, now=START) as store, closing(sqlite3.connect(path)) as other:
        store._database.connection.exec_driver_sql("PRAGMA busy_timeout = 10")
        other.execute("BEGIN IMMEDIATE")
        observation = observe(minutes(5))
        with pytest.raises(StoreError, match=r"locked.*fuser"):
            store.record(observation, judge(observation))
        assert store.report() is not None  # readers do not wait for a writer
        assert [gap.dropped for gap in store.gaps(START)] == [1]


def test_path_with_marks_that_mean_something_in_a_uri_is_only_a_path(tmp_path: Path) -> None:
    state_dir = tmp_path / "a b?mode=memory#%41"
    path = recorded(state_dir)
    assert path.stat().st_size > 0
    with HostStore.open(state_dir, now=START, read_only=True) as store:
        assert store.report() is not None
