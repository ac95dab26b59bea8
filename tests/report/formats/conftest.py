"""A few hosts with every verdict, and with names that act wherever they are not escaped."""

import sys
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from exitguard.model.documents import DecidingCode
from exitguard.model.finding import Severity, SubjectKind, Verdict
from exitguard.model.machine_code import Instruction
from exitguard.report.formats.writer import RuleText, Setting, Writer
from exitguard.report.overview import GroupKey, Overview
from exitguard.report.page import Look
from exitguard.report.result import HostResult

sys.path.insert(0, str(Path(__file__).parent))  # for fleet_builder.py

#: Formulas, markup, terminal escapes, ends of sections, what XML and JSON have no place for, what hides, and length.
HOSTILE = (
    "=cmd|' /C calc'!A0",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "]]>&amp;<!--",
    "</script><script>alert(1)",
    "a\nb\r\nc|d",
    "\x1b[31mred\x07",
    "\x00\x08\x7f\ufffe\uffff",
    "\u202egnp.exe",
    "[x](javascript:alert(1)) `code` @someone",
    "{{ 7 * 7 }}",
    "x" * 10_000,
)


#: What two of the rules demand, one of them in hostile words.
RULES = {
    "RULE-1": RuleText("The kernel has the guard", "Each skipped instruction would else do dead work."),
    "RULE-4": RuleText(HOSTILE[1], HOSTILE[2]),
}


@pytest.fixture
def rules() -> dict[str, RuleText]:
    """What a writer of `written` is told of rules."""
    return RULES


@pytest.fixture
def hosts(build: SimpleNamespace) -> list[HostResult]:
    """Two hosts of every verdict each, one stale; their names, guests, reasons and evidence are hostile."""
    made = []
    for number in range(2):
        host = build.host(id=f"7f0c2a4e-0d51-4c6e-9b1f-2f1f5a3f9a1{number}", hostname=HOSTILE[1] if number else "compute-1")
        # The machine code is of the image that the second finding's evidence is from, and as hostile.
        code = DecidingCode(
            path=HOSTILE[1],
            instructions=tuple(Instruction(function=each, address=1, text=each, note=each) for each in HOSTILE),
        )
        host = host.model_copy(update={"kernel": host.kernel.model_copy(update={"code": code})})
        guests = tuple(build.domain(name, number=place) for place, name in enumerate(HOSTILE))
        findings = []
        for place, name in enumerate(HOSTILE):
            subject = build.finding().subject.model_copy(update={"id": guests[place].uuid, "name": name})
            verdict = tuple(Verdict)[place % len(Verdict)]
            findings.append(
                build.finding(
                    verdict,
                    f"RULE-{place}",
                    subject=subject,
                    reason=name,
                    severity=tuple(Severity)[place % len(Severity)],
                    evidence=(build.evidence(name, name),),
                    since=build.moment - timedelta(days=place),
                    remedy="domain_pmu_off" if verdict is Verdict.FAIL else None,
                    waiver=f"waiver-{place}" if verdict is Verdict.WAIVED else None,
                )
            )
        about_host = build.finding(
            Verdict.PASS, "HOST-SOURCES", subject=subject.model_copy(update={"kind": SubjectKind.HOST, "id": host.id})
        )
        made.append(HostResult(build.report(guests, (*findings, about_host), host_report=host), stale=bool(number), source="a file"))
    return made


@pytest.fixture
def written(build: SimpleNamespace) -> Callable[..., str]:
    """What a format makes of hosts."""

    def write(writer: Callable[[Setting], Writer], results: Iterable[HostResult], *, unread: tuple[str, ...] = (), **changes: Any) -> str:
        group_by = changes.get("group_by")
        assert group_by is None or isinstance(group_by, GroupKey)
        made = writer(Setting(**({"generated_at": build.moment, "look": Look(), "rules": RULES} | changes)))
        overview = Overview(group_by=group_by)
        pieces = [*made.begin()]
        for result in results:
            overview.add(result)
            pieces += made.host(result)
        overview.unread = list(unread)
        return "".join([*pieces, *made.end(overview)])

    return write
