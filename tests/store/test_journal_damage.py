"""A journal that is not as it was written: an event that was cut short is passed over, everything else is refused with its line."""

import hashlib
import json
from pathlib import Path

import pytest
from append_and_say import START, a_plan, append_event, make_run, seconds
from hypothesis import given, settings
from hypothesis import strategies as st

from exitguard.model.run import EventKind, RunEvent
from exitguard.store.errors import StoreError, StoreFull, StoreNewer
from exitguard.store.event_log import MAX_LINE_BYTES, Header, header_line, read_log
from exitguard.store.journal import RunStore

FIRST_ID = f"20261123T024601Z-{a_plan().hash.removeprefix('sha256:')[:8]}"


@pytest.fixture
def runs(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs")


def lines_of(directory: Path) -> list[bytes]:
    return (directory / "journal.jsonl").read_bytes().splitlines(keepends=True)


@pytest.fixture(scope="module")
def five_events(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunStore, Path]:
    """A store whose one run has five events, and the run's directory."""
    directory = tmp_path_factory.mktemp("five") / "runs"
    return RunStore(directory), directory / make_run(RunStore(directory), 5)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_journal_cut_at_any_byte_is_its_beginning_or_refused(five_events: tuple[RunStore, Path], data: st.DataObject) -> None:
    store, directory = five_events
    path = directory / "journal.jsonl"
    whole, before = path.read_bytes(), list(store.read(directory.name).events)
    ends = [sum(map(len, lines_of(directory)[:count])) for count in range(1, 7)]
    cut = data.draw(
        st.integers(0, len(whole)) | st.sampled_from([end + by for end in ends for by in (-2, -1, 0, 1) if end + by <= len(whole)])
    )
    zeros = data.draw(st.sampled_from([0, 1, 700]))
    expected = before[: sum(end <= cut for end in ends) - 1]
    try:
        path.write_bytes(whole[:cut] + b"\0" * zeros)
        if cut < ends[0]:
            with pytest.raises(StoreError, match=r"journal\.jsonl:1: "):
                store.read(directory.name)
            return
        if cut + 1 in ends and zeros == 1:  # an event whose line end alone is not there: not by a write that was cut short
            with pytest.raises(StoreError, match="is whole, but ends in the byte 0x00"):
                store.read(directory.name)
            return
        assert list(store.read(directory.name).events) == expected
        with store.open(directory.name) as journal:
            assert list(journal.events) == expected
            assert path.stat().st_size == ends[len(expected)]
            append_event(journal)
        assert len(store.read(directory.name).events) == len(expected) + 1
    finally:
        path.write_bytes(whole)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_journal_with_any_byte_changed_is_refused_and_left_as_it_is(five_events: tuple[RunStore, Path], data: st.DataObject) -> None:
    store, directory = five_events
    path = directory / "journal.jsonl"
    whole = path.read_bytes()
    ends = [sum(map(len, lines_of(directory)[:count])) - 1 for count in range(1, 7)]
    where = data.draw(st.integers(0, len(whole) - 1) | st.sampled_from(ends))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[where]))
    damaged = whole[:where] + bytes([other]) + whole[where + 1 :]
    number = whole[:where].count(b"\n") + 1
    try:
        path.write_bytes(damaged)
        for action in (store.read, store.open):
            with pytest.raises(StoreError, match=rf"journal\.jsonl:{number}: .*It was left as it is|newer exitguard"):
                action(directory.name)
        assert path.read_bytes() == damaged
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("order", "line"),
    [((0, 1, 3, 4, 5), 3), ((0, 1, 2, 2, 3, 4, 5), 4), ((0, 2, 1, 3, 4, 5), 2), ((1, 2, 3), 1), ((), 1), ((0, 0, 1), 2)],
    ids=["missing", "doubled", "exchanged", "no header", "empty", "two headers"],
)
def test_line_out_of_its_place_is_refused(five_events: tuple[RunStore, Path], tmp_path: Path, order: tuple[int, ...], line: int) -> None:
    lines = lines_of(five_events[1])
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b"".join(lines[number] for number in order))
    with pytest.raises(StoreError, match=rf"journal\.jsonl:{line}: "):
        read_log(path)


def test_line_of_another_run_is_refused(runs: RunStore, tmp_path: Path) -> None:
    first, second = make_run(runs, 2), make_run(runs, 2)
    mine, others = lines_of(tmp_path / "runs" / first), lines_of(tmp_path / "runs" / second)
    (tmp_path / "runs" / first / "journal.jsonl").write_bytes(b"".join((*mine[:2], others[2])))
    with pytest.raises(StoreError, match=r"journal\.jsonl:3: its checksum does not fit it and the lines before it"):
        runs.open(first)
    (tmp_path / "runs" / first / "journal.jsonl").write_bytes(b"".join(others))
    with pytest.raises(StoreError, match=rf"is the journal of run {second}"):
        runs.open(first)
    # A refusal lets go of the store.
    runs.open(second).close()


def test_plan_that_is_not_the_one_of_the_journal_is_refused(runs: RunStore, tmp_path: Path) -> None:
    run_id = make_run(runs, 1)
    path = tmp_path / "runs" / run_id / "plan.json"
    for content in (a_plan("web-2").model_dump_json().encode(), b"", b"\xff" * 100, path.read_bytes() + b" "):
        path.write_bytes(content)
        for action in (runs.read, runs.open):
            with pytest.raises(
                StoreError, match=r"plan\.json: is not the plan that this run's journal was begun with.*looks at the hosts afresh"
            ):
                action(run_id)
        assert path.read_bytes() == content


def journal_of(lines: list[dict[str, object]]) -> bytes:
    """A journal with the right chain, whatever it says: as another version might write it."""
    chain, written = "", b""
    for kind, body in (next(iter(line.items())) for line in lines):
        text = json.dumps(body, separators=(",", ":")).encode()
        chain = hashlib.sha256(chain.encode() + text).hexdigest()
        written += f'{{"chain":"{chain}","{kind}":'.encode() + text + b"}\n"
    return written


HEADER: dict[str, object] = {"schema_version": 1, "run_id": FIRST_ID, "plan_file": "00"}
STARTED: dict[str, object] = {"seq": 0, "at": "2026-11-23T02:46:01Z", "kind": "started"}


def test_journal_as_written_down_here_is_one(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(journal_of([{"header": HEADER}, {"event": STARTED | {"grown": 1}}]))
    assert read_log(path).events == [RunEvent(seq=0, at=seconds(0).replace(microsecond=0), kind=EventKind.STARTED)]
    assert header_line(Header(run_id=FIRST_ID, plan_file="00")) == journal_of([{"header": HEADER}])


def test_newer_journal_is_refused_and_left(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(journal_of([{"header": HEADER | {"schema_version": 2}}, {"other": {}}]))
    with pytest.raises(StoreNewer, match=r"was written by a newer exitguard\. Expected schema_version 1\."):
        read_log(path)


def test_newer_plan_is_refused(runs: RunStore, tmp_path: Path) -> None:
    run_id = make_run(runs, 0)
    plan = json.dumps(a_plan().model_dump(mode="json") | {"schema_version": 2}).encode()
    (tmp_path / "runs" / run_id / "plan.json").write_bytes(plan)
    header = HEADER | {"run_id": run_id, "plan_file": hashlib.sha256(plan).hexdigest()}
    (tmp_path / "runs" / run_id / "journal.jsonl").write_bytes(journal_of([{"header": header}]))
    with pytest.raises(StoreNewer, match=r"plan\.json: was written by a newer exitguard"):
        runs.read(run_id)


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (STARTED | {"seq": 1}, "says that it is event 1, and event 0 comes here"),
        (STARTED | {"kind": "invented"}, r"no event that this version knows \(kind\)"),
        (STARTED | {"at": "yesterday"}, r"no event that this version knows \(at\)"),
        (["started"], r"no event that this version knows \(all of it\)"),
    ],
)
def test_event_that_cannot_be_is_refused_with_its_line(tmp_path: Path, event: object, message: str) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(journal_of([{"header": HEADER}, {"event": event}]))
    with pytest.raises(StoreError, match=rf"journal\.jsonl:2: .*{message}"):
        read_log(path)


def test_reading_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    start = journal_of([{"header": HEADER}, {"event": STARTED}])
    path.write_bytes(start + b"x" * (MAX_LINE_BYTES + 1))
    with pytest.raises(StoreError, match=r"journal\.jsonl:3: is longer than 1048576 bytes"):
        read_log(path)
    path.write_bytes(start + b"x" * (MAX_LINE_BYTES + 1) + b"\n" + start)
    with pytest.raises(StoreError, match=r"journal\.jsonl:3: is longer than 1048576 bytes"):
        read_log(path)
    with path.open("r+b") as file:
        file.truncate(256 * 2**20 + 1)
    with pytest.raises(StoreError, match=r"has 268435457 bytes\. Expected at most 268435456"):
        read_log(path)


def test_event_that_could_not_be_read_back_is_not_written(runs: RunStore) -> None:
    with runs.create(a_plan(), START) as journal:
        with pytest.raises(StoreFull, match=r"does not fit behind \d+\. Expected events of at most 1048576 bytes.*Plan fewer hosts"):
            journal.append(EventKind.STOPPED, START, reason="x" * MAX_LINE_BYTES)
        assert append_event(journal) == 0
    assert len(runs.read(FIRST_ID).events) == 1
