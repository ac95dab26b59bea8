import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.facts import changelog
from exitguard.facts.changelog import ChangelogSearch, GuardEntry, search_changelog, standing_guard, withdrawal

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


#: An entry whose silence counts.
CHANGE = "  * a change\n"


def search(text: str, version: str | None = None, markers: tuple[str, ...] = MARKERS) -> ChangelogSearch:
    return search_changelog([text.encode()], markers, version=version)


def lines(text: str, version: str | None = None, markers: tuple[str, ...] = MARKERS) -> tuple[list[str], list[str], bool]:
    found = search(text, version, markers)
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


@pytest.mark.parametrize(
    "entry",
    [
        'Revert "{}"',
        'Revert "Revert "{}""',
        "Drop {}: superseded",
        "Reverted: {}",
        "remove {}",
        "back out {}",
        "{}: reverted, breaks perf",
        "{} (prepared, not yet applied)",
        "{}: not\n    applied on this arch",
        "{}, undone",
        "undo {}",
        "Disable patch kvm-skip: {}",
        "Disabling {}",
        "unapplied {}",
        "Prepare for {}",
        "Restore PMU event, without {}",
        "kvm: restore PMU event in skip path, VSTOR-132543",
        "kvm: withdraw the change of VSTOR-132543",
    ],
)
def test_newest_entry_that_withdraws_the_guard_is_the_last_word(entry: str) -> None:
    text = f"linux (2-1) x; urgency=low\n\n  * {entry.format(SUBJECT)}\n\nlinux (1-1) x; urgency=low\n\n  * {SUBJECT}\n"
    entries = search(text).entries
    assert [(entry.withdraws, entry.newest) for entry in entries] == [(True, True), (False, False)]
    assert withdrawal(entries) == entries[0]
    assert standing_guard(entries) == ()


@pytest.mark.parametrize(
    "entry",
    [
        SUBJECT,
        f"{SUBJECT} (Some One) [VSTOR-132543]",
        "kvm: no PMU work on exits of guests whose vPMU is disabled [VSTOR-132543]",
        "x86: do not walk PMU counters for nothing [VSTOR-132543]",
        f"Fix a build failure after {SUBJECT}",
    ],
)
def test_entry_that_brings_the_guard_is_no_withdrawal(entry: str) -> None:
    assert standing_guard(search(f"- {entry}\n- Revert something else\n").entries) == (entry,)


@pytest.mark.parametrize(
    "text",
    [
        f"  * Drop what broke\n    perf:\n    - one\n    - {SUBJECT}\n    - three\n",
        f"  * These broke perf,\n    and are dropped:\n    - one\n    - {SUBJECT}\n",
        f"  * All of these are reverted:\n    - group\n      + one\n      + {SUBJECT}\n",
        f"  * {SUBJECT}\n    - and reverted again\n",
    ],
)
def test_entry_above_or_below_may_withdraw_the_guard(text: str) -> None:
    assert standing_guard(search(f"linux (2-1) x; urgency=low\n\n{text}").entries) == ()


def test_withdrawal_of_something_else_does_not_matter() -> None:
    text = f"  * Drop a patch:\n    - one\n  * Stable update:\n    - Revert one\n    - {SUBJECT}\n    - Revert two\n  * Drop another\n"
    assert standing_guard(search(f"linux (2-1) x; urgency=low\n\n{text}").entries) == (SUBJECT,)


def test_within_one_version_the_order_tells_nothing() -> None:
    # Debian lists the changes of several upstream releases in one version, the oldest first: this guard was reverted later.
    text = f'linux (2-1) x; urgency=low\n\n  * Stable update:\n    - {SUBJECT}\n    - other\n    - Revert "{SUBJECT}"\n'
    entries = search(text).entries
    assert [entry.withdraws for entry in entries] == [False, True]
    assert standing_guard(entries) == ()


@pytest.mark.parametrize("heading", ["linux (1-1) x; urgency=low\n", "* Tue Jun 02 2026 A <a@example.org> [5.14.0-503]\n"])
def test_guard_that_came_back_in_a_newer_version_stands(heading: str) -> None:
    entries = search(f'{heading}- {SUBJECT}\n\n{heading}- Revert "{SUBJECT}"\n').entries
    assert [entry.newest for entry in entries] == [True, False]
    assert standing_guard(entries) == (SUBJECT,)


def test_withdrawal_after_many_entries_of_the_same_version_is_not_lost() -> None:
    text = "".join(f"- {number} {SUBJECT}\n" for number in range(20)) + f"- Revert {SUBJECT}\n"
    assert standing_guard(search(text).entries) == ()


def test_version_that_ends_in_another_window_ends() -> None:
    filler = "  - an entry of some length that says nothing\n" * 20_000
    text = f'  * {SUBJECT}\n{filler}linux (1-1) x; urgency=low\n{filler}  * Revert "{SUBJECT}"\n{filler}'.encode()
    chunks = [text[at : at + 50_000] for at in range(0, len(text), 50_000)]
    assert standing_guard(search_changelog(chunks, MARKERS).entries) == (SUBJECT,)


@pytest.mark.parametrize(
    "entry",
    [
        "selftests: add at_cpu_cpuid benchmark [VSTOR-132543]",
        "KVM: selftests: measure CPUID exits [VSTOR-132543]",
        "mm: something of the same ticket (VSTOR-132543)",
        "kvm: a ticket whose number is longer [VSTOR-1325430]",
    ],
)
def test_ticket_alone_does_not_name_the_guard(entry: str) -> None:
    assert search(f"- {entry}\n- kvm: another\n").entries == ()


@pytest.mark.parametrize("entry", ["KVM: a quicker CPUID exit [VSTOR-132543]", "x86/pmu: a quicker exit\n  (VSTOR-132543)"])
def test_ticket_of_a_change_of_kvm_or_pmu_names_the_guard(entry: str) -> None:
    assert standing_guard(search(f"- {entry}\n").entries) == (" ".join(entry.split()),)


@pytest.mark.parametrize(
    ("text", "gap"),
    [
        ("", "it lists no changes"),
        ("(none)\n", "it lists no changes"),
        ("* Tue Jun 02 2026 A <a@example.org> [5.14.0-503]\n\n", "it lists no changes"),
        ("linux-upstream (6.12.0-7) x; urgency=low\n\n  * Custom built Linux kernel.\n", "it lists no changes"),
        ("linux-signed-amd64 (6.1.1+1) x; urgency=low\n\n  * Sign kernel from linux 6.1.1-1\n", "it lists no changes"),
        ("linux-signed (6.8.0-45.45) noble; urgency=medium\n\n  * Master version: 6.8.0-45.45\n", "only names the version"),
        ("linux-signed (6.8.0-45.45) x; urgency=low\n\n  * Main version: 6.8.0-45.45\n\n  * Packaging resync\n    - a\n", "only names"),
    ],
)
def test_silence_of_a_changelog_that_could_not_name_the_guard_has_a_reason(text: str, gap: str) -> None:
    assert gap in (search(text).gap or "")


def test_silence_of_a_changelog_that_lists_changes_counts() -> None:
    assert search(f"linux-signed-amd64 (6.1.1+1) x; urgency=low\n\n  * Sign kernel from linux 6.1.1-1\n\n{CHANGE}").gap is None
    assert search("* Tue Jun 02 2026 A <a@example.org> [5.14.0-503]\n- a change\n").gap is None


TRIMMED = "its older entries were removed, and what is left does not reach back to before 2026, the year of the guard"
NOTICES = [
    "# Older entries have been removed from this changelog.\n# To read the complete changelog use `apt changelog linux-perf`.\n",
    "# For older changelog entries, run 'apt-get changelog linux-perf'\n",
]


@pytest.mark.parametrize("notice", NOTICES)
@pytest.mark.parametrize(
    ("trailer", "reason"),
    [
        (" -- A <a@example.org>  Wed, 31 Dec 2025 02:27:14 +0100\n", None),
        (" -- A <a@example.org>  Thu,  1 Jan 2026 02:27:14 +0100\n", TRIMMED),
        ("", TRIMMED),
    ],
)
def test_trimmed_changelog_speaks_if_it_reaches_back_to_before_the_guard(notice: str, trailer: str, reason: str | None) -> None:
    newest = f"linux (2-1) x; urgency=low\n\n{CHANGE}\n -- A <a@example.org>  Mon, 16 Nov 2026 02:27:14 +0100\n\n"
    filler = (CHANGE * 100_000).encode()
    text = (filler, f"{newest}linux (1-1) x; urgency=low\n\n{CHANGE}\n{trailer}\n{notice}".encode())
    assert search_changelog(text, MARKERS).gap == reason


def test_guard_in_a_trimmed_changelog_still_counts() -> None:
    found = search(f"linux (2-1) x; urgency=low\n\n  * {SUBJECT}\n\n{NOTICES[0]}")
    assert (standing_guard(found.entries), found.gap is None) == ((SUBJECT,), False)


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
    assert found.entries == (GuardEntry(line=SUBJECT, withdraws=False, newest=True),)
    assert (found.newer, found.holds_version) == ((), True)


def test_newer_entry_at_the_end_of_a_window_stays_newer() -> None:
    # The entry and the heading below it both stand in the margin that the first window leaves to the second.
    filler = b"-\n" * ((changelog._WINDOW_BYTES - changelog._MARGIN_BYTES // 2) // 2)
    text = filler + f"- {SUBJECT}\nlinux (1-1) x; urgency=low\n".encode() + filler
    chunks = [text[at : at + changelog._WINDOW_BYTES] for at in range(0, len(text), changelog._WINDOW_BYTES)]
    found = search_changelog(chunks, MARKERS, version="1-1")
    assert (found.newer, found.entries, found.holds_version) == ((GuardEntry(line=SUBJECT, withdraws=False, newest=True),), (), True)


def test_memory_stays_small_however_long_the_text_is() -> None:
    windows = changelog._windows(b"x" * 50_000 for _ in range(200))
    assert max(len(window) for window, _, _ in windows) < 400_000


@given(st.lists(st.binary(max_size=200)), st.text(max_size=20), st.text(max_size=20))
def test_arbitrary_bytes_never_raise(chunks: list[bytes], marker: str, version: str) -> None:
    found = search_changelog(chunks, (marker,), version=version)
    assert all(entry.line.isprintable() and len(entry.line) <= 200 for entry in (*found.newer, *found.entries))
