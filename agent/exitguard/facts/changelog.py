"""A kernel package's changelog, searched for the entries that name the guard. Pure, and streaming: changelogs have tens of megabytes.

Versions stand newest first (deb-changelog(5); rpm's %changelog), so the newest one that names the guard has the last word. Within
one version the order tells nothing: Debian lists an upstream revert below what it reverts. Where that version has an entry that
may withdraw the guard, the guard is in doubt. Silence counts only where the changelog could have named the guard: see `gap`.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from exitguard.facts.tree import one_line

_MAX_ENTRIES = 5
_MAX_ENTRY_LINES = 20
#: Far more often than any package names one change; bounds the work on a hostile changelog.
_MAX_MATCHES = 200
_WINDOW_BYTES = 256 << 10
#: More than any entry is long: what stands this close to a window's end is left to the next window.
_MARGIN_BYTES = 8 << 10
#: The first line of an entry, or a heading between entries; other lines continue the line above.
_ENTRY_START = re.compile(rb"\s*[*+-]\s|\s*\[ |\S")
_BULLET = re.compile(r"^[*+-]\s+")
_BULLET_LINE = re.compile(rb"[ \t]*[*+-]\s")
#: The heading of a version: "linux (6.1.192-1) bookworm; ...", "* Tue Jun 02 2026 Some One <a@example.org> [5.14.0-503]".
_VERSION_HEADING = re.compile(rb"^(?:[a-z0-9][a-z0-9.+-]* \(|\* [A-Z][a-z]{2} [A-Z][a-z]{2} [ 0-9][0-9] [0-9]{4} )", re.MULTILINE)

#: A ticket's number alone says little: one ticket may have many commits, such as its benchmark.
_TICKET = re.compile(rb"[a-z]+-[0-9]+")
_ABOUT_THE_PMU = re.compile(rb"kvm|pmu")
_ABOUT_A_TEST = re.compile(rb"\bselftests?\b")
# Looked for in lower-cased text without the markers, which may hold such words themselves ("... is disabled").
_WITHDRAWAL = re.compile(
    rb"\b(?:un-?)?(?:revert(?:s|ed|ing)?|drop(?:s|ped|ping)?|remov(?:es?|ed|ing|al)|undo(?:es|ing|ne)?|undid|withdr[ae]w[a-z]*"
    rb"|disabl(?:es?|ed|ing)|back(?:s|ed|ing)?[\s-]+out|unappl[a-z]+|restor(?:es?|ed|ing)|prepar(?:es?|ed|ing|ations?|atory)"
    rb"|reject[a-z]*|supersed[a-z]*|exclud[a-z]*|postpon[a-z]*|defer(?:s|red|ring)?"
    rb"|not[\s-]+(?:yet|(?:been[\s-]+)?(?:appl|includ|merg|enabl|activ|backport|carr|pick)[a-z]*))\b"
)
_PMU_DISABLED = re.compile(rb"\bv?pmus?\s+(?:is\s+|are\s+)?disabled\b")

#: Ubuntu's signed kernels: their changelog names the version of the package that they sign, and nothing of what changed in it.
_NAMES_ANOTHER = re.compile(rb"^[ \t]{0,16}\*[ \t]+(?:Master|Main) version:", re.MULTILINE)
#: An entry about a change: not the line that Debian's signing adds, nor the only one that the kernel's own `make bindeb-pkg` writes.
_CHANGE = re.compile(
    rb"^(?!\* [A-Z][a-z]{2} [A-Z][a-z]{2} [ 0-9][0-9] [0-9]{4} )[ \t]{0,16}[*+-][ \t]+"
    rb"(?!Sign kernel from |Custom built Linux kernel\b)[^\s]",
    re.MULTILINE,
)
# debhelper 13 (dh_installchangelogs(1)) and Ubuntu's pkgbinarymangler, the latter in two wordings.
_OLDER_REMOVED = re.compile(rb"^# (?:For )?older (?:changelog )?entries\b", re.MULTILINE | re.IGNORECASE)
_TRAILER_YEAR = re.compile(rb"^ -- [^\n]{0,300}, [ 0-9]?[0-9] [A-Z][a-z]{2} ([0-9]{4}) ", re.MULTILINE)
_NOTICE_BYTES = 1 << 10
_HEADING_BYTES = 256
#: The guard was posted on 22 May 2026 (OpenVZ devel list): no entry of an earlier year names it.
_GUARD_YEAR = 2026


@dataclass(frozen=True)
class GuardEntry:
    """An entry that names the guard, as one line."""

    line: str
    #: It may say that the guard was taken out again, or is not in yet.
    withdraws: bool
    #: It belongs to the newest of the versions that name the guard.
    newest: bool


@dataclass(frozen=True)
class ChangelogSearch:
    """What a changelog says of the guard, newest first, apart for what is newer than the version that was asked about."""

    newer: tuple[GuardEntry, ...]
    entries: tuple[GuardEntry, ...]
    #: Whether the version that was asked about has an entry; True where none was asked about.
    holds_version: bool
    #: Why its silence says nothing; None where it would name the guard if the guard were in.
    gap: str | None


@dataclass
class _Group:
    """The entries found so far on one side of the version that was asked about."""

    entries: list[GuardEntry] = field(default_factory=list)
    matches: int = 0
    in_newest_version: bool = True

    def note(self, line: str, *, withdraws: bool) -> None:
        entry = GuardEntry(line=line, withdraws=withdraws, newest=self.in_newest_version)
        # However many entries there are, one that withdraws the guard in its newest version must not be lost.
        decides = withdraws and entry.newest and not any(found.withdraws for found in self.entries)
        known = any((found.line, found.withdraws) == (line, withdraws) for found in self.entries)
        if not known and (len(self.entries) < _MAX_ENTRIES or decides):
            self.entries.append(entry)


def search_changelog(chunks: Iterable[bytes], markers: Sequence[str], *, version: str | None = None) -> ChangelogSearch:
    """The entries that contain one of the markers, in any case and however the lines are wrapped; a few at most.

    A marker that is only a ticket's number counts where its entry also speaks of KVM or of a PMU. With a Debian `version`, what
    stands above its heading is newer than it. A signed Debian kernel's heading has `+` for the last `-` of the version:
    linux-signed-amd64 (6.1.192+2) signs linux 6.1.192-2.
    """
    heading = _heading(version) if version is not None else None
    marker = _any_of(markers)
    newer, entries = _Group(), _Group()
    reached = heading is None
    lists_changes = names_another = False
    window = b""
    for window, start, end in _windows(chunks):
        if not lists_changes:
            names_another = names_another or _NAMES_ANOTHER.search(window, start) is not None
            lists_changes = not names_another and _CHANGE.search(window, start) is not None
        boundary = start
        if heading is not None and not reached:
            found = heading.search(window, start)
            reached = found is not None and found.start() < end
            boundary = found.start() if found is not None and reached else end
        if marker is not None:
            _search_stretch(newer, window, start, boundary, marker)
            _search_stretch(entries, window, boundary, end, marker)
    gap = _gap(window, names_another=names_another, lists_changes=lists_changes)
    return ChangelogSearch(newer=tuple(newer.entries), entries=tuple(entries.entries), holds_version=reached, gap=gap)


def withdrawal(entries: Sequence[GuardEntry]) -> GuardEntry | None:
    """The entry that puts the guard in doubt, where the newest version that names it has one."""
    return next((entry for entry in entries if entry.newest and entry.withdraws), None)


def standing_guard(entries: Sequence[GuardEntry]) -> tuple[str, ...]:
    """The entries, newest first, that say the guard is in; none where the newest version that names it may withdraw it."""
    if withdrawal(entries) is not None:
        return ()
    return tuple(entry.line for entry in entries if not entry.withdraws)[:_MAX_ENTRIES]


def _windows(chunks: Iterable[bytes]) -> Iterator[tuple[bytes, int, int]]:
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


def _search_stretch(group: _Group, window: bytes, start: int, end: int, marker: re.Pattern[bytes]) -> None:
    """Add what stands in window[start:end] to the group."""
    at = start
    for match in marker.finditer(window[: end + _MARGIN_BYTES].lower(), start) if start < end else ():
        if match.start() >= end or group.matches >= _MAX_MATCHES:
            break
        _follow_versions(group, window, at, match.start())
        at = match.start()
        group.matches += 1
        line, context = _entry_at(window, match)
        if not _TICKET.fullmatch(match[0]) or (_ABOUT_THE_PMU.search(context) and not _ABOUT_A_TEST.search(context)):
            group.note(line, withdraws=_withdraws(context, marker))
    _follow_versions(group, window, at, end)


def _follow_versions(group: _Group, window: bytes, start: int, end: int) -> None:
    """Notice that the newest version which names the guard ends between here and there."""
    if group.entries and group.in_newest_version:
        found = _VERSION_HEADING.search(window, start, end + _HEADING_BYTES)
        group.in_newest_version = found is None or found.start() >= end


def _withdraws(context: bytes, marker: re.Pattern[bytes]) -> bool:
    rest = _PMU_DISABLED.sub(b" ", marker.sub(b" ", context))
    return _WITHDRAWAL.search(rest) is not None


def _entry_at(window: bytes, match: re.Match[bytes]) -> tuple[str, bytes]:
    """The entry as one line to show, and in lower case with the entries that it stands below and those that stand below it."""
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
    entry = window[max(start, match.start() - _MARGIN_BYTES) : min(end, match.end() + _MARGIN_BYTES)]
    line = _BULLET.sub("", one_line(window[start : min(end, start + _MARGIN_BYTES)].decode("utf-8", "replace")))
    context = b"\n".join((*_above(window, start), entry, *_below(window, start, end)))
    return line, context.lower()


def _above(window: bytes, start: int) -> list[bytes]:
    """The lines of the entries that the entry is indented below."""
    indent = _indent(window[start : start + _MARGIN_BYTES])
    found: list[bytes] = []
    continued: list[bytes] = []
    # The first line may be cut, and is left out.
    for line in reversed(window[max(0, start - _MARGIN_BYTES) : start].split(b"\n")[1 if start > _MARGIN_BYTES else 0 :]):
        if indent == 0 or (line[:1].strip() and not _BULLET_LINE.match(line)):
            break
        if not _BULLET_LINE.match(line):
            continued = [line, *continued] if line.strip() else []
            continue
        if _indent(line) < indent:
            found = [line, *continued, *found]
            indent = _indent(line)
        continued = []
    return found


def _below(window: bytes, start: int, end: int) -> list[bytes]:
    """The first lines that are indented below the entry."""
    indent = _indent(window[start:end])
    found: list[bytes] = []
    for line in window[end + 1 : end + 1 + _MARGIN_BYTES].split(b"\n")[:_MAX_ENTRY_LINES]:
        if not line.strip() or _indent(line) <= indent:
            break
        found.append(line)
    return found


def _indent(line: bytes) -> int:
    return len(line) - len(line.lstrip(b" \t"))


def _line_end(window: bytes, at: int) -> int:
    found = window.find(b"\n", at)
    return len(window) if found == -1 else found


def _gap(last_window: bytes, *, names_another: bool, lists_changes: bool) -> str | None:
    if names_another:
        return "it only names the version of the package that it signs, not what changed in it"
    if not lists_changes:
        return "it lists no changes"
    notice = _OLDER_REMOVED.search(last_window, max(0, len(last_window) - _NOTICE_BYTES))
    if notice is None:
        return None
    years = [int(match[1]) for match in _TRAILER_YEAR.finditer(last_window)]
    if years and years[-1] < _GUARD_YEAR:
        return None
    return f"its older entries were removed, and what is left does not reach back to before {_GUARD_YEAR}, the year of the guard"


def _any_of(markers: Sequence[str]) -> re.Pattern[bytes] | None:
    # Searched in lower-cased text: that keeps the regex engine's fast way of looking for a fixed beginning, IGNORECASE does not.
    phrases = [rb"\s+".join(re.escape(word.encode().lower()) for word in marker.split()) for marker in markers if marker.strip()]
    choices = (phrase + (rb"(?![0-9])" if phrase[-1:].isdigit() else b"") for phrase in phrases)
    return re.compile(b"|".join(choices)) if phrases else None


def _heading(version: str) -> re.Pattern[bytes]:
    upstream, dash, revision = version.rpartition("-")
    text = re.escape(upstream.encode()) + (rb"[-+]" if dash else b"") + re.escape(revision.encode())
    return re.compile(rb"^[a-z0-9][a-z0-9.+-]* \(" + text + rb"\) ", re.MULTILINE)
