import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.facts import changelog
from exitguard.facts.changelog import GuardEntry, search_changelog, standing_guard

SUBJECT = "x86/kvm: skip PMU event trigger when guest PMU is disabled"
MARKERS = (SUBJECT, "VSTOR-132543")
DEBIAN = f"""linux-signed-amd64 (6.1.200+1) bookworm; urgency=medium

  * Sign kernel from linux 6.1.200-1

  * New upstream stable update:
    - first
    - {SUBJECT.partition(" when ")[0]}
      when {SUBJECT.partition(" when ")[2]} (Closes: #1)
    - last

 -- Somebody <a@example.org>  Mon, 16 Nov 2026 11:17:40 +0100

linux (6.1.199-1) bookworm; urgency=medium

  [ Somebody ]
  * an older change

 -- Somebody <a@example.org>  Sun, 15 Nov 2026 11:17:40 +0100
"""


def lines(text: str, version: str | None = None, markers: tuple[str, ...] = MARKERS) -> tuple[list[str], list[str], bool]:
    found = search_changelog([text.encode()], markers, version=version)
    return [entry.line for entry in found.newer], [entry.line for entry in found.entries], found.holds_version


def test_wrapped_entry_is_found_whole() -> None:
    assert lines(DEBIAN) == ([], [f"{SUBJECT} (Closes: #1)"], True)


def test_entry_newer_than_the_running_version_stands_apart() -> None:
    assert lines(DEBIAN, "6.1.199-1") == ([f"{SUBJECT} (Closes: #1)"], [], True)


def test_signed_package_has_a_plus_in_its_version() -> None:
    assert lines(DEBIAN, "6.1.200-1") == ([], [f"{SUBJECT} (Closes: #1)"], True)


def test_version_that_is_nowhere_leaves_everything_newer() -> None:
    assert lines(DEBIAN, "6.1.20-1") == ([f"{SUBJECT} (Closes: #1)"], [], False)


def test_rpm_entry_with_two_markers_counts_once() -> None:
    text = f"* Tue Jun 02 2026 A <a@example.org> [5.14]\n- {SUBJECT} (A) [VSTOR-132543]\n- other\n"
    assert lines(text) == ([], [f"{SUBJECT} (A) [VSTOR-132543]"], True)


def test_case_does_not_matter() -> None:
    assert lines(f"- {SUBJECT.upper()}\n")[1] == [SUBJECT.upper()]


def test_neighbouring_entries_are_not_drawn_in() -> None:
    assert lines(f"  * one\n  + {SUBJECT}\n  - three\n")[1] == [SUBJECT]
    assert lines(f"heading\n\n{SUBJECT}\n\n  more\n")[1] == [SUBJECT]


def test_similar_text_is_no_marker() -> None:
    assert lines("- x86/kvm: skip PMU event trigger when guest PMU is enabled [VSTOR-13254]\n")[1] == []


@pytest.mark.parametrize("markers", [(), ("",), ("  ",)])
def test_empty_markers_match_nothing(markers: tuple[str, ...]) -> None:
    assert lines(DEBIAN, markers=markers)[1] == []


@pytest.mark.parametrize("withdrawal", ['Revert "{}"', "Drop {}: superseded", "Reverted: {}", "remove {}", "back out {}"])
def test_newest_entry_that_withdraws_the_guard_is_the_last_word(withdrawal: str) -> None:
    text = f"- {withdrawal.format(SUBJECT)}\n- {SUBJECT}\n"
    entries = search_changelog([text.encode()], MARKERS).entries
    assert [entry.withdraws for entry in entries] == [True, False]
    assert standing_guard(entries) == ()


def test_guard_that_came_back_stands() -> None:
    entries = search_changelog([f'- {SUBJECT}\n- Revert "{SUBJECT}"\n'.encode()], MARKERS).entries
    assert standing_guard(entries) == (SUBJECT,)


def test_entries_are_few_and_short() -> None:
    text = "".join(f"- {number} {SUBJECT} {'x' * 500}\n" for number in range(20))
    found = search_changelog([text.encode()], MARKERS).entries
    assert [entry.line[:2].strip() for entry in found] == ["0", "1", "2", "3", "4"]
    assert {len(entry.line) for entry in found} == {200 - len("- ")}


def test_terminal_escapes_do_not_reach_the_entry() -> None:
    assert lines(f"- \x1b[2J{SUBJECT}\x07\n")[1] == [f"[2J{SUBJECT}"]


@given(st.integers(0, 700_000), st.integers(1, 300_000))
def test_entry_is_found_wherever_windows_and_chunks_end(before: int, chunk_bytes: int) -> None:
    filler = b"  - an entry of some length that says nothing\n"
    heading = b"linux (1-1) x; urgency=low\n"
    text = (
        (filler * 20_000)[:before]
        + b"\n"
        + heading
        + b"  - x86/kvm: skip PMU event trigger\n    when guest PMU is disabled\n"
        + filler * 10
    )
    chunks = [text[at : at + chunk_bytes] for at in range(0, len(text), chunk_bytes)]
    found = search_changelog([*chunks[:2000], b"".join(chunks[2000:])], MARKERS, version="1-1")
    assert found.entries == (GuardEntry(line=SUBJECT, withdraws=False),)
    assert (found.newer, found.holds_version) == ((), True)


def test_newer_entry_at_the_end_of_a_window_stays_newer() -> None:
    # The entry and the heading below it both stand in the margin that the first window leaves to the second.
    filler = b"-\n" * ((changelog._WINDOW_BYTES - changelog._MARGIN_BYTES // 2) // 2)
    text = filler + f"- {SUBJECT}\nlinux (1-1) x; urgency=low\n".encode() + filler
    chunks = [text[at : at + changelog._WINDOW_BYTES] for at in range(0, len(text), changelog._WINDOW_BYTES)]
    found = search_changelog(chunks, MARKERS, version="1-1")
    assert (found.newer, found.entries, found.holds_version) == ((GuardEntry(line=SUBJECT, withdraws=False),), (), True)


def test_memory_stays_small_however_long_the_text_is() -> None:
    windows = changelog._windows(b"x" * 50_000 for _ in range(200))
    assert max(len(window) for window, _, _ in windows) < 400_000


@given(st.lists(st.binary(max_size=200)), st.text(max_size=20), st.text(max_size=20))
def test_arbitrary_bytes_never_raise(chunks: list[bytes], marker: str, version: str) -> None:
    found = search_changelog(chunks, (marker,), version=version)
    assert all(entry.line.isprintable() and len(entry.line) <= 200 for entry in (*found.newer, *found.entries))
