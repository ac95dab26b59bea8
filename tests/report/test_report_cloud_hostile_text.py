"""Tenants name their instances: no name may act in a terminal, a spreadsheet, or Markdown."""

import csv
import io
import re
from collections.abc import Callable

import pytest
from cloud_samples import KINDS, PROJECT, compute, facts, finding, flavor, identity, instance, report
from hypothesis import given
from hypothesis import strategies as st

from exitguard.model.cloud import CloudFacts
from exitguard.model.finding import Subject, SubjectKind, Verdict
from exitguard.model.instance import CloudReport
from exitguard.model.record import unseen
from exitguard.report.cells import csv_pieces, markdown_code
from exitguard.report.cloud_facts_table import cloud_facts_table
from exitguard.report.cloud_groups import GroupBy, group_instances
from exitguard.report.cloud_groups_page import groups_csv, groups_markdown, groups_page
from exitguard.report.cloud_markdown import cloud_csv, cloud_markdown
from exitguard.report.cloud_table import cloud_table
from exitguard.report.cloud_tenant import tenant_csv, tenant_markdown, tenant_report
from exitguard.report.page import Look

HOSTILE = {
    "markup": "[red]x[/red][bold",
    "newlines": "web\n  COMPLIANT\r\n",
    "ansi": "\x1b[2J\x1b[31mx\x1b]0;owned\x07",
    "c1": "\x9b2J\x85",
    "right_to_left": "\u202egnp.exe\u2066",
    "zero_width": "a\u200bb\u200d\ufeff",
    "long": "x" * 10_000,
    "html": "<script>alert(1)</script><!--",
    "link": "[x](javascript:alert(1)) ![y](http://evil.example/z) www.evil.example @everyone #1",
    "table": "a | b |\n| --- |",
    "code": "`` ` ``` ~~~",
    "formula": '=HYPERLINK("http://evil.example","x")',
    "quotes": '"a","b"\n;,',
    "empty": "",
    "blank": "  ",
}
LOOKS = {"plain": Look(), "colour": Look(color=True), "ascii": Look(unicode=False), "narrow": Look(width=32)}


def hostile_report(name: str) -> CloudReport:
    """`name` wherever a tenant, a cloud or a file could have put it."""
    named = dict.fromkeys(("name", "flavor", "zone", "host", "build", "status", "image", "origin_reason", "survives_reason"), name)
    instances = tuple(instance(kind=kind, number=number, **named) for number, kind in enumerate(KINDS))
    about = Subject(kind=SubjectKind.INSTANCE, id=name, name=name)
    findings = tuple(finding(name, verdict, subject=about, reason=name, waiver=name, remedy=name) for verdict in Verdict)
    computes = (compute(name, aggregates=(name,), builds=(name,), reason=name, zone=name),)
    return report(instances, findings, computes, policy=name, cloud=identity(id=name, name=name, region=name, microversion=name))


def hostile_facts(name: str) -> CloudFacts:
    of = hostile_report(name)
    return facts(of.instances, (flavor(name), flavor(name, name)), cloud=of.cloud, hypervisors=unseen(name, name, unlock=name))


PAGES: dict[str, Callable[[str, Look], str]] = {
    "table": lambda name, look: cloud_table(hostile_report(name), look),
    "groups": lambda name, look: groups_page(group_instances(hostile_report(name), GroupBy.HOST), look),
    "facts": lambda name, look: cloud_facts_table(hostile_facts(name), look),
}
ROWS: dict[str, Callable[[str, Look], str]] = {
    "csv": lambda name, look: "".join(cloud_csv(hostile_report(name), look)),
    "groups csv": lambda name, look: "".join(groups_csv(group_instances(hostile_report(name), GroupBy.FLAVOR), look)),
    "tenant csv": lambda name, look: "".join(tenant_csv(tenant_report(hostile_report(name), hostile_facts(name), PROJECT), look)),
}
MARKDOWN: dict[str, Callable[[str, Look], str]] = {
    "audit": lambda name, look: "".join(cloud_markdown(hostile_report(name), look)),
    "groups": lambda name, look: "".join(groups_markdown(group_instances(hostile_report(name), GroupBy.ZONE), look)),
    "tenant": lambda name, look: "".join(tenant_markdown(tenant_report(hostile_report(name), hostile_facts(name), PROJECT), look)),
}


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS.keys())
@pytest.mark.parametrize(
    "form", [*PAGES.values(), *ROWS.values(), *MARKDOWN.values()], ids=[*PAGES, *ROWS, *(f"{key} md" for key in MARKDOWN)]
)
def test_nothing_acts_on_a_terminal_but_our_own_colours(form: Callable[[str, Look], str], look: Look, name: str) -> None:
    text = form(name, look)
    bare = re.sub(r"\x1b\[[0-9;]*m", "", text) if look.color else text
    assert all(character == "\n" or character.isprintable() for character in bare)
    assert len(text) < 120_000


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS.keys())
def test_tenants_word_cannot_forge_a_line_of_the_page(look: Look) -> None:
    words = "web " + "COMPLIANT " * 20
    one = instance(words, flavor=words, status=words, origin_reason=words)
    text = cloud_table(report((one,), (finding(about=one, reason=words),)), look) + cloud_facts_table(facts((one,), (flavor(words),)), look)
    assert not any(line.startswith("COMPLIANT") for line in text.split("\n"))


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("form", [*PAGES.values(), *ROWS.values()], ids=[*PAGES, *ROWS])
def test_place_that_shows_ascii_alone_gets_ascii_alone(form: Callable[[str, Look], str], name: str) -> None:
    assert form(name, Look(unicode=False)).isascii()


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("form", ROWS.values(), ids=ROWS.keys())
def test_no_cell_of_a_spreadsheet_is_a_formula_and_no_name_makes_a_row(form: Callable[[str, Look], str], name: str) -> None:
    rows = list(csv.reader(io.StringIO(form(name, Look()))))
    plain = list(csv.reader(io.StringIO(form("plain", Look()))))
    assert [len(row) for row in rows] == [len(row) for row in plain]
    assert not any(cell.lstrip().startswith(("=", "+", "-", "@")) for row in rows for cell in row if cell != "-")


@given(st.text(max_size=60) | st.text("=+-@'\"\t\r\n, |;1", max_size=12))
def test_any_text_is_one_cell_that_computes_nothing(text: str) -> None:
    (_, cells) = csv.reader(io.StringIO("".join(csv_pieces(["a", "b"], [[text, 7]], Look()))))
    assert len(cells) == 2
    assert cells[1] == "7"
    assert not cells[0].lstrip().startswith(("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20"))


def test_harmless_text_is_the_cell_as_it_is() -> None:
    assert "".join(csv_pieces(["name"], [["web-1"], ['a "b", c'], [None], ["\xfc"]], Look())) == 'name\nweb-1\n"a ""b"", c"\n""\n\xfc\n'


@given(st.text(max_size=60) | st.text("`| \\ab", max_size=12))
def test_any_text_is_one_code_span_that_ends_where_it_should(text: str) -> None:
    """CommonMark 6.1: a span begins with a run of backticks and ends at the next run of exactly that length."""
    span = markdown_code(text, Look())
    if span == "(empty)":
        return
    fence = re.match(r"`+", span)
    assert fence is not None
    runs = [run.group() for run in re.finditer(r"`+", span)]
    assert runs[0] == runs[-1] == fence.group()
    assert all(run != fence.group() for run in runs[1:-1])
    assert "|" not in span.replace("\\|", "")
    assert "\n" not in span


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("form", MARKDOWN.values(), ids=MARKDOWN.keys())
def test_no_name_makes_a_row_a_cell_a_heading_or_leaves_its_code_span(form: Callable[[str, Look], str], name: str) -> None:
    text, plain = form(name, Look()), form("plain", Look())
    shape = [re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)|\(empty\)", "X", line) for line in text.split("\n")]
    assert shape == [re.sub(r"`[^`]+`", "X", line) for line in plain.split("\n")]
