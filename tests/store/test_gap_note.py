"""The note of what was dropped: in place, one sector, never forgotten and never counted twice."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from store_builders import START, judge, minutes, observe

from exitguard.model.history import Gap
from exitguard.store.errors import StoreError
from exitguard.store.gap import NOTE_BYTES, clear_note, note_dropped, prepare_note, read_note
from exitguard.store.host import HostStore


@pytest.fixture
def note(tmp_path: Path) -> Path:
    path = tmp_path / "gap-note"
    prepare_note(path)
    return path


def test_note_is_allocated_before_it_is_needed(note: Path) -> None:
    status = note.stat()
    assert (status.st_size, status.st_blocks > 0) == (NOTE_BYTES, True)
    assert read_note(note) is None


def test_missing_note_says_nothing(tmp_path: Path) -> None:
    assert read_note(tmp_path / "gap-note") is None


def test_note_grows_with_each_dropped_observation_and_keeps_its_id(note: Path) -> None:
    note_dropped(note, minutes(0), "database or disk is full")
    first = read_note(note)
    note_dropped(note, minutes(5), "disk I/O error")
    assert first is not None
    assert read_note(note) == Gap(id=first.id, first_at=minutes(0), last_at=minutes(5), dropped=2, reason="disk I/O error")
    assert note.stat().st_size == NOTE_BYTES


@pytest.mark.parametrize("reason", ["x" * 5000, '"\\' * 2500, "\0\n\x1b[31m" * 100, "ü" * 500, "\U0001f600" * 500, "\udcff" * 10, ""])
def test_any_reason_fits_into_the_note(note: Path, reason: str) -> None:
    for minute in range(3):
        note_dropped(note, minutes(minute), reason)
    found = read_note(note)
    assert found is not None
    assert found.dropped == 3
    assert note.stat().st_size == NOTE_BYTES


def test_cleared_note_makes_room_for_another_gap(note: Path) -> None:
    note_dropped(note, minutes(0), "full")
    first = read_note(note)
    assert first is not None
    clear_note(note, first)
    assert read_note(note) is None
    note_dropped(note, minutes(5), "full")
    second = read_note(note)
    assert second is not None
    assert second.id != first.id


def test_note_that_has_grown_since_is_not_cleared(note: Path) -> None:
    note_dropped(note, minutes(0), "full")
    stored = read_note(note)
    assert stored is not None
    note_dropped(note, minutes(5), "full")
    clear_note(note, stored)
    grown = read_note(note)
    assert grown is not None
    assert grown.dropped == 2


def test_preparing_again_keeps_what_is_noted(note: Path) -> None:
    note_dropped(note, minutes(0), "full")
    noted = read_note(note)
    prepare_note(note)
    assert read_note(note) == noted


def test_damaged_note_counts_as_one_gap_the_same_each_time(note: Path) -> None:
    note.write_bytes(b'{"id": "half a no'.ljust(NOTE_BYTES))
    os.utime(note, ns=(0, (START.timestamp().__trunc__()) * 10**9))
    first = read_note(note)
    assert first is not None
    assert (first.dropped, first.reason) == (1, "the note of a gap is damaged")
    assert first.last_at == START.replace(microsecond=0)
    assert read_note(note) == first


def test_processes_that_drop_at_once_are_all_counted(note: Path) -> None:
    program = (
        "import sys, datetime, pathlib\n"
        "from exitguard.store.gap import note_dropped\n"
        "for _ in range(50): note_dropped(pathlib.Path(sys.argv[1]), datetime.datetime.now(datetime.UTC), 'full')\n"
    )
    droppers = [subprocess.Popen([sys.executable, "-c", program, str(note)]) for _ in range(4)]
    assert [dropper.wait(60) for dropper in droppers] == [0] * 4
    noted = read_note(note)
    assert noted is not None
    assert noted.dropped == 200


def test_note_that_was_stored_but_not_cleared_is_not_counted_twice(tmp_path: Path) -> None:
    note = tmp_path / "gap-note"
    with HostStore.open(tmp_path, now=START) as store:
        note_dropped(note, minutes(0), "full")
        as_noted = note.read_bytes()
        for minute in (5, 10):
            observation = observe(minutes(minute))
            store.record(observation, judge(observation))
            note.write_bytes(as_noted)  # as if killed between the commit and the clearing
            assert [gap.dropped for gap in store.gaps(START)] == [1]
    with HostStore.open(tmp_path, now=START) as store:
        assert read_note(note) is None
        assert [gap.dropped for gap in store.gaps(START)] == [1]


def test_gap_that_grew_after_it_was_stored_is_told_in_full_and_once(tmp_path: Path) -> None:
    note = tmp_path / "gap-note"
    with HostStore.open(tmp_path, now=START) as store:
        note_dropped(note, minutes(0), "full")
        as_noted = note.read_bytes()
        for minute, drops in ((5, 0), (15, 1)):
            if drops:
                note.write_bytes(as_noted)  # as if clearing had failed, and then another observation was dropped
                note_dropped(note, minutes(10), "full")
            observation = observe(minutes(minute))
            store.record(observation, judge(observation))
        assert read_note(note) is None
        assert [(gap.first_at, gap.last_at, gap.dropped) for gap in store.gaps(START)] == [(minutes(0), minutes(10), 2)]


def test_gaps_before_a_time_are_left_out(tmp_path: Path) -> None:
    with HostStore.open(tmp_path, now=START) as store:
        for minute in (0, 10):
            note_dropped(tmp_path / "gap-note", minutes(minute), "full")
            observation = observe(minutes(minute + 5))
            store.record(observation, judge(observation))
        note_dropped(tmp_path / "gap-note", minutes(20), "full")
        assert [gap.first_at for gap in store.gaps(minutes(0))] == [minutes(0), minutes(10), minutes(20)]
        assert [gap.first_at for gap in store.gaps(minutes(10))] == [minutes(10), minutes(20)]
        assert store.gaps(minutes(21)) == ()


def test_store_that_cannot_be_opened_notes_the_observation_that_was_to_come(tmp_path: Path) -> None:
    HostStore.open(tmp_path, now=START).close()
    (tmp_path / "host.sqlite").write_bytes(b"no database" * 500)
    with pytest.raises(StoreError, match="was not stored; that is shown as a gap"):
        HostStore.open(tmp_path, now=minutes(5))
    noted = read_note(tmp_path / "gap-note")
    assert noted is not None
    assert (noted.first_at, noted.dropped) == (minutes(5), 1)


def test_note_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with HostStore.open(tmp_path, now=START) as store:
        (tmp_path / "gap-note").unlink()
        (tmp_path / "gap-note").mkdir()
        observation = observe(minutes(5))
        with pytest.raises(StoreError, match=r"could not even be noted in .*gap-note \(is a directory\)"):
            store.record(observation, judge(observation))
