"""docs/cli.md and docs/metrics.md: all that there is, as the code has it."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from cli_reference import cli_document
from command_tree import verbs
from generate import ROOT, generated
from metrics_reference import metrics_document
from prometheus_client.parser import text_string_to_metric_families

from exitguard.cli.edge import run
from exitguard.cli.examples import EXAMPLES
from exitguard.daemon.metrics import Metrics
from exitguard.daemon.service import JOBS
from exitguard.schemas import schema_names

TREE = {verb.line: verb for verb in verbs()}
DOCUMENT = cli_document()


def section(line: str) -> str:
    return DOCUMENT.partition(f"\n## {line}\n")[2].partition("\n## ")[0]


def spelt_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w`-])--?[a-z][a-z-]*", text))


def test_every_verb_has_a_section() -> None:
    assert {" ".join(["exitguard", *verb.split()]) for verb in EXAMPLES} == set(TREE)
    assert [line for line in TREE if f"\n## {line}\n" not in DOCUMENT] == []


@pytest.mark.parametrize("line", TREE)
def test_section_names_the_options_that_the_help_names(capsys: pytest.CaptureFixture[str], line: str) -> None:
    assert run([*line.split()[1:], "--help"]) == 0
    told = capsys.readouterr().out.partition("\nOptions:\n")[2].partition("\n\n")[0]
    # An option begins its line; what is told of it may name others.
    offered = {spelling for start in re.findall(r"(?m)^ {2}(-\S.*?)(?: {2}|$)", told) for spelling in spelt_in(start)}
    assert offered
    assert {spelling for option in TREE[line].options for spelling in option.spellings} == offered
    for option in TREE[line].options:
        assert f"| `{', '.join(option.spellings)}" in section(line)


@pytest.mark.parametrize("line", TREE)
def test_section_shows_usage_description_and_examples(line: str) -> None:
    verb, text = TREE[line], section(line)
    assert f"\n    {line} {verb.usage}\n" in text
    assert all(paragraph in text for paragraph in verb.description)
    assert all(f"\n    {example}\n" in text for example in verb.examples)
    assert verb.verbs or "\nExit codes: " in text


def test_defaults_ranges_and_choices_are_told_apart() -> None:
    assert "| `-f, --format table\\|json` | table for people, json for programs. | `table` |  |" in section("exitguard audit")
    assert "| `--hours N` | For how long the approval is good. | `24` | `1<=x<=720` |" in section("exitguard approve")
    assert "| `--listing, --no-listing` | " in section("exitguard kernel inspect")
    assert "\n| `FILE...` | Waiver files. |\n" in section("exitguard waiver check")


def test_table_rows_have_as_many_cells_as_their_head_and_no_html() -> None:
    cells: int | None = None
    for line in (*DOCUMENT.splitlines(), "", *metrics_document().splitlines()):
        if not line.startswith("|"):
            cells = None
            continue
        found = len(re.split(r"(?<!\\)\|", line))
        assert found == (cells or found), line
        cells = found
        assert "<" not in re.sub(r"`[^`]*`", "", line), line


def test_every_schema_is_listed() -> None:
    listed = section("JSON Schemas")
    assert [name for name in schema_names() if f"\n| `{name}` | " not in listed] == []


def test_every_metric_the_daemon_serves_is_listed_with_type_and_labels() -> None:
    rows = {row.split("`")[1]: row for row in metrics_document().splitlines() if row.startswith("| `")}
    served = {}
    for family in text_string_to_metric_families(Metrics(jobs=JOBS, rules=["A-RULE"]).text()):
        suffix = "_total" if family.type == "counter" else ""
        served[family.name + suffix] = family
    assert set(rows) == set(served)
    for name, family in served.items():
        assert f"| {family.type} |" in rows[name]
        assert family.documentation in rows[name]
        for sample in family.samples:
            assert all(f"`{label}`: " in rows[name] for label in sample.labels)
    # These are absent until there is something to tell.
    assert "| `bound`: `low`, `high` |" in rows["exitguard_saved_cycles_per_second"]
    assert "`guarded`" in rows["exitguard_host_kernel_info"]


def test_both_pages_are_among_those_that_are_checked_to_be_current() -> None:
    told = generated()
    assert told[ROOT / "docs" / "cli.md"] == DOCUMENT
    assert told[ROOT / "docs" / "metrics.md"] == metrics_document()
