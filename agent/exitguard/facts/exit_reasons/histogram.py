"""The kernel's histogram of kvm:kvm_exit, as text: what asks for it, and what it says. Pure.

The format is Documentation/trace/histogram.rst's; recorded examples are in tests/facts/exit_reasons/.
"""

import re

from exitguard.facts.tree import one_line
from exitguard.model.exit_reasons import VMX, ExitCount

#: A key is a thread and a reason; a guest has some twenty reasons at a time. The kernel sets memory for all aside, about 5 MB.
ENTRIES = 16384
#: 16,384 entries of some 90 characters.
LIMIT_BYTES = 4 << 20
#: Fields of the tracepoint by which exits are told apart.
_FIELDS = ("common_pid", "isa", "exit_reason")
TRIGGER = f"hist:keys={','.join(_FIELDS)}:size={ENTRIES}"
PAUSE = f"{TRIGGER}:pause"

_FORMAT_FIELD = re.compile(r"^\tfield:[^;]*?([A-Za-z_][A-Za-z0-9_]*);", re.MULTILINE)
_ENTRY = re.compile(r"\{ (?P<keys>[^{}]*) \} hitcount: *(?P<hits>[0-9]{1,20})")
_KEY = re.compile(r"(?P<name>[a-z_]+): *(?P<number>[0-9]{1,10})")
_TOTAL = re.compile(r"^ {4}(?P<name>Hits|Entries|Dropped): (?P<number>[0-9]{1,20})$", re.MULTILINE)
#: The basic exit reason of VMX (Intel SDM, appendix C); flags such as a failed entry stand above it.
_BASIC_REASON = 0xFFFF


class HistogramError(Exception):
    """The kernel's histogram does not say what is asked of it; the message says what was found."""


def missing_fields(text: str) -> tuple[str, ...]:
    """What the tracepoint's `format` file lacks of the fields that are counted by; older kernels had fewer, and fields move."""
    found = set(_FORMAT_FIELD.findall(text))
    return tuple(name for name in _FIELDS if name not in found)


def parse(text: str) -> tuple[ExitCount, ...]:
    """The counts of a `hist` file. Raises HistogramError where it is not whole: an exit that is missing would make another share."""
    totals = {match["name"]: int(match["number"]) for match in _TOTAL.finditer(text)}
    if not totals.keys() >= {"Hits", "Entries", "Dropped"}:
        raise HistogramError("the histogram has no end: expected lines Hits, Entries and Dropped")
    if totals["Dropped"]:
        raise HistogramError(f"{totals['Dropped']} exits found no place among {ENTRIES} threads and reasons")
    counts: dict[tuple[int, int, int], int] = {}
    entries = 0
    for line in text.splitlines():
        if not line.startswith("{"):
            continue
        entries += 1
        thread, isa, reason, hits = _entry(line)
        key = (thread, isa, reason & _BASIC_REASON if isa == VMX else reason)
        counts[key] = counts.get(key, 0) + hits
    if entries != totals["Entries"] or sum(counts.values()) != totals["Hits"]:
        raise HistogramError(f"the histogram holds {entries} entries and {sum(counts.values())} exits, and counts {_both(totals)}")
    return tuple(ExitCount(thread=thread, isa=isa, reason=reason, exits=hits) for (thread, isa, reason), hits in sorted(counts.items()))


def _entry(line: str) -> tuple[int, int, int, int]:
    match = _ENTRY.fullmatch(line.rstrip())
    numbers = {key["name"]: int(key["number"]) for key in _KEY.finditer(match["keys"])} if match is not None else {}
    if match is None or set(numbers) != set(_FIELDS):
        raise HistogramError(f"expected an entry with {', '.join(_FIELDS)} and hitcount, found {one_line(line)!r}")
    thread, isa, reason = (numbers[name] for name in _FIELDS)
    return thread, isa, reason, int(match["hits"])


def _both(totals: dict[str, int]) -> str:
    return f"{totals['Entries']} and {totals['Hits']}"
