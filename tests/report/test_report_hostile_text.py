"""Tenants name their guests: no name may act, whichever page or document it reaches."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from exitguard.cycle import AuditRequest, observe
from exitguard.model.documents import AuditReport, FactsDocument
from exitguard.model.domain import DomainDefinition, DomainFacts, Owner, OwnerKind
from exitguard.model.finding import Subject, SubjectKind, Verdict
from exitguard.model.history import Gap, Transition
from exitguard.model.host import UnmanagedGuest
from exitguard.model.pmu import ChainState, NextAction, PmuElement
from exitguard.model.record import seen, unseen
from exitguard.report.changes import Changes, changes_page
from exitguard.report.doctor import doctor_page
from exitguard.report.explanation import explain_domain
from exitguard.report.facts_table import facts_table
from exitguard.report.json_document import json_text
from exitguard.report.page import Look
from exitguard.report.table import audit_table

HOSTILE = {
    "markup": "[red]x[/red][bold",
    "link": "[link=https://evil.example/]x[/link]",
    "newlines": "web\n  COMPLIANT\r\n",
    "ansi": "\x1b[2J\x1b[31mx\x1b]0;owned\x07",
    "c1": "\x9b2J\x85",
    "right_to_left": "\u202egnp.exe\u2066",
    "zero_width": "a\u200bb\u200d\ufeff",
    "long": "x" * 10_000,
    "marks": "Z" + "\u0334" * 200,
    "backspace": "\x08\x08\x08pass",
    "separator": "\u2028\u2029",
    "emoji": ":boom: \U0001f4a5",
    "empty": "",
}
LOOKS = {
    "plain": Look(),
    "colour": Look(color=True),
    "ascii": Look(unicode=False),
    "narrow": Look(width=32),
    "wide": Look(width=500, color=True),
}


def hostile_report(build: SimpleNamespace, name: str) -> AuditReport:
    """`name` wherever a tenant or a file could have put it."""
    domain = build.domain(name, ChainState.UNKNOWN, NextAction.ASK_OWNER, owner=Owner(kind=OwnerKind.OTHER, name=name), reason=name)
    domain = domain.model_copy(update={"active": None, "evidence": (build.evidence(name, name),)})
    subject = Subject(kind=SubjectKind.DOMAIN, id=domain.uuid, name=name)
    findings = tuple(
        build.finding(
            verdict, f"R{verdict}", subject=subject, reason=name, evidence=(build.evidence(name, name),), waiver=name, remedy=name
        )
        for verdict in Verdict
    )
    kernel = build.kernel(release=name, reason=name, pending_reboot=True, pending_release=name, disagreements=(name,))
    unmanaged = seen(name, (UnmanagedGuest(command=name, executable=name), UnmanagedGuest(command=name, executable=None)))
    host = build.host(hostname=name, kernel=kernel, cpu=unseen(name, name, unlock=name), unmanaged=unmanaged)
    return build.report((domain,), findings, host_report=host, policy=name)


def hostile_facts(name: str, tree: Path) -> FactsDocument:
    """Facts of an empty file tree, and one domain that is hostile all over."""
    facts = observe(AuditRequest(sysroot=tree)).facts
    definition = DomainDefinition(
        type=name, arch=name, machine=name, emulator=name, cpu_mode=name, cpu_model=name, pmu=PmuElement.ABSENT, overrides=(name,)
    )
    domain = DomainFacts(
        uuid="00000000-0000-4000-8000-000000000001",
        name=name,
        active=unseen(name, name, unlock=name),
        managed_save=seen(name, False),
        definition=seen(name, definition),
        run=None,
        process=unseen(name, name),
        owner=Owner(kind=OwnerKind.OTHER, name=name),
    )
    return facts.model_copy(update={"domains": (domain,)})


def changes(build: SimpleNamespace, name: str) -> Changes:
    subject = Subject(kind=SubjectKind.DOMAIN, id=name, name=name)
    transition = Transition(rule=name, subject=subject, before=None, now=Verdict.FAIL, reason=name, at=build.moment)
    gap = Gap(id="00000000-0000-4000-8000-000000000001", first_at=build.moment, last_at=build.moment, dropped=1, reason=name)
    return Changes(since=build.moment, transitions=(transition,), gaps=(gap,))


PAGES: dict[str, Callable[[SimpleNamespace, str, Look, Path], str]] = {
    "audit": lambda build, name, look, _: audit_table(hostile_report(build, name), look),
    "explain": lambda build, name, look, _: explain_domain(hostile_report(build, name), hostile_report(build, name).domains[0], look),
    "facts": lambda _, name, look, tree: facts_table(hostile_facts(name, tree), look),
    "doctor": lambda _, name, look, tree: doctor_page(hostile_facts(name, tree), look),
    "changes": lambda build, name, look, _: changes_page(changes(build, name), look),
}


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS.keys())
@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES.keys())
def test_nothing_on_a_page_acts_but_our_own_colours(
    build: SimpleNamespace, page: Callable[..., str], look: Look, name: str, tmp_path: Path
) -> None:
    text = page(build, name, look, tmp_path)
    bare = re.sub(r"\x1b\[[0-9;]*m", "", text) if look.color else text
    assert all(character == "\n" or character.isprintable() for character in bare)
    assert look.unicode or bare.isascii()
    assert len(text) < 60_000


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
def test_documents_are_ascii_whatever_the_name(build: SimpleNamespace, name: str, tmp_path: Path) -> None:
    for document in (hostile_report(build, name), hostile_facts(name, tmp_path), changes(build, name)):
        text = json_text(document)
        assert all(character == "\n" or (character.isascii() and character.isprintable()) for character in text)
        assert type(document).model_validate_json(text) == document


def test_markup_is_printed_not_obeyed(build: SimpleNamespace) -> None:
    page = audit_table(build.report((build.domain("[red]x[/red]"),)), LOOKS["colour"])
    assert "[red]x[/red]" in page


def test_a_name_cannot_forge_a_line_of_the_page(build: SimpleNamespace) -> None:
    page = audit_table(hostile_report(build, "web\nCOMPLIANT  all is well"), Look(width=120))
    assert not any(line.startswith("COMPLIANT") for line in page.split("\n"))


def test_a_name_cannot_colour_what_follows(build: SimpleNamespace) -> None:
    page = audit_table(build.report((build.domain("\x1b[32m"),)), LOOKS["colour"])
    assert r"\x1b[32m" in page
    assert "\x1b[32m" not in page.replace("\x1b[32mequivalent", "")
