"""A kernel package's changelog, searched for the entries that name the guard. Pure, and streaming: changelogs have tens of megabytes.

Changelogs are written newest first (deb-changelog(5); rpm's %changelog), so the first entry that names the guard is the last
word about it: where that one withdraws the guard ("Revert ..."), the guard is not there.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from exitguard.facts.tree import one_line

_MAX_ENTRIES = 5
_MAX_ENTRY_LINES = 20
_WINDOW_BYTES = 256 << 10
#: More than any entry is long: what stands this close to a window's end is left to the next window.
_MARGIN_BYTES = 8 << 10
#: The first line of an entry, or a heading between entries; other lines continue the line above.
_ENTRY_START = re.compile(rb"\s*[*+-]\s|\s*\[ |\S")
_BULLET = re.compile(r"^[*+-]\s+")
_WITHDRAWAL = re.compile(r"\b(?:revert(?:s|ed)?|drop(?:s|ped)?|removed?|back(?:ed|s)? out)\b", re.IGNORECASE)


@dataclass(frozen=True)
class GuardEntry:
    """An entry that names the guard, as one line; `withdraws` where it says that the guard was taken out again."""

    line: str
    withdraws: bool


@dataclass(frozen=True)
class ChangelogSearch:
    """What a changelog says of the guard, newest first, apart for what is newer than the version that was asked about."""

    newer: tuple[GuardEntry, ...]
    entries: tuple[GuardEntry, ...]
    #: Whether the version that was asked about has an entry; True where none was asked about.
    holds_version: bool


def search_changelog(chunks: Iterable[bytes], markers: Sequence[str], *, version: str | None = None) -> ChangelogSearch:
    """The entries that contain one of the markers, in any case and however the lines are wrapped; a few at most.

    With a Debian `version`, what stands above its heading is newer than it. A signed Debian kernel's heading has `+` for
    the last `-` of the version: linux-signed-amd64 (6.1.192+2) signs linux 6.1.192-2.
    """
    heading = _heading(version) if version is not None else None
    marker = _any_of(markers)
    newer: list[GuardEntry] = []
    entries: list[GuardEntry] = []
    reached = heading is None
    for window, start, end in _windows(chunks):
        boundary = start
        if heading is not None and not reached:
            found = heading.search(window, start)
            reached = found is not None and found.start() < end
            boundary = found.start() if found is not None and reached else end
        for match in marker.finditer(window.lower(), start) if marker is not None else ():
            if match.start() >= end:
                break
            _note(newer if match.start() < boundary else entries, _entry_at(window, match))
    return ChangelogSearch(newer=tuple(newer), entries=tuple(entries), holds_version=reached)


def standing_guard(entries: Sequence[GuardEntry]) -> tuple[str, ...]:
    """The entries, newest first, that say the guard is in; none where the newest withdraws it."""
    if not entries or entries[0].withdraws:
        return ()
    return tuple(entry.line for entry in entries if not entry.withdraws)[:_MAX_ENTRIES]


def _windows(chunks: Iterable[bytes]) -> Iterable[tuple[bytes, int, int]]:
    """Stretches of the text with room around: window, and from where to where a match in it may start."""
    window = b""
    start = 0
    for chunk in chunks:
        window += chunk
        end = len(window) - _MARGIN_BYTES
        if len(window) < _WINDOW_BYTES:
            continue
        yield window, start, end
        cut = end - _MARGIN_BYTES
        window, start = window[cut:], end - cut
    yield window, start, len(window)


def _note(entries: list[GuardEntry], entry: GuardEntry) -> None:
    if len(entries) < _MAX_ENTRIES and entry not in entries:
        entries.append(entry)


def _entry_at(window: bytes, match: re.Match[bytes]) -> GuardEntry:
    start = window.rfind(b"\n", 0, match.start()) + 1
    for _ in range(_MAX_ENTRY_LINES):
        above = window.rfind(b"\n", 0, max(start - 1, 0)) + 1
        if start == 0 or _ENTRY_START.match(window, start) or not window[above:start].strip():
            break
        start = above
    end = _line_end(window, match.end())
    for _ in range(_MAX_ENTRY_LINES):
        following = _line_end(window, end + 1)
        if end >= len(window) or _ENTRY_START.match(window, end + 1) or not window[end + 1 : following].strip():
            break
        end = following
    before = window[max(start, match.start() - _MARGIN_BYTES) : match.start()].decode("utf-8", "replace")
    line = _BULLET.sub("", one_line(window[start : min(end, start + _MARGIN_BYTES)].decode("utf-8", "replace")))
    return GuardEntry(line=line, withdraws=_WITHDRAWAL.search(before) is not None)


def _line_end(window: bytes, at: int) -> int:
    found = window.find(b"\n", at)
    return len(window) if found == -1 else found


def _any_of(markers: Sequence[str]) -> re.Pattern[bytes] | None:
    # Searched in lower-cased text: that keeps the regex engine's fast way of looking for a fixed beginning, IGNORECASE does not.
    phrases = [rb"\s+".join(re.escape(word.encode().lower()) for word in marker.split()) for marker in markers if marker.strip()]
    return re.compile(b"|".join(phrases)) if phrases else None


def _heading(version: str) -> re.Pattern[bytes]:
    upstream, dash, revision = version.rpartition("-")
    text = re.escape(upstream.encode()) + (rb"[-+]" if dash else b"") + re.escape(revision.encode())
    return re.compile(rb"^[a-z0-9][a-z0-9.+-]* \(" + text + rb"\) ", re.MULTILINE)
