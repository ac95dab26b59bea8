"""The JSON that programs read: whole, stable, ASCII."""

import json
from types import SimpleNamespace

import pytest

from exitguard.model.documents import AuditReport
from exitguard.report.json_document import json_text


def test_reading_it_back_gives_the_same_report(build: SimpleNamespace) -> None:
    report = build.report((build.domain(),), (build.finding(),))
    assert AuditReport.model_validate_json(json_text(report)) == report


def test_keys_are_in_the_order_of_the_model(build: SimpleNamespace) -> None:
    document = json.loads(json_text(build.report()))
    assert list(document) == ["schema_version", "tool", "observed_at", "policy", "host", "domains", "findings", "summary", "savings"]


@pytest.mark.parametrize("name", ["\x1b[31m", "\u202e\u200b", "[red]", "日本語", "\x7f\x9b", "a\nb", "x" * 10_000])
def test_hostile_name_is_kept_exactly_and_cannot_act(build: SimpleNamespace, name: str) -> None:
    text = json_text(build.report((build.domain(name),)))
    assert json.loads(text)["domains"][0]["name"] == name
    assert text.isascii()
    assert all(character == "\n" or character.isprintable() for character in text)


def test_one_newline_at_the_end(build: SimpleNamespace) -> None:
    text = json_text(build.report())
    assert text.endswith("}\n")
    assert not text.endswith("\n\n")
