"""Every format but HTML: read by readers that are not ours, with hostile text, no host, one, and several."""

import csv
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from jsonschema import Draft4Validator, Draft202012Validator, ValidationError
from junitparser import Error, Failure, JUnitXml, Skipped
from markdown_it import MarkdownIt
from prometheus_client.parser import text_string_to_metric_families

from exitguard.daemon.metrics import Metrics
from exitguard.model.finding import Severity, Verdict
from exitguard.report.formats.as_csv import COLUMNS, CsvWriter
from exitguard.report.formats.as_json import JsonWriter
from exitguard.report.formats.as_junit import JunitWriter
from exitguard.report.formats.as_markdown import MarkdownWriter
from exitguard.report.formats.as_nagios import CRITICAL, OK, UNKNOWN, WARNING, NagiosWriter, nagios_exit_code
from exitguard.report.formats.as_prometheus import PrometheusWriter
from exitguard.report.formats.as_sarif import SarifWriter
from exitguard.report.formats.as_table import TableWriter
from exitguard.report.formats.writer import RuleText
from exitguard.report.overview import GroupKey, Overview
from exitguard.report.result import HostResult
from exitguard.schemas import schema

Write = Callable[..., str]
WRITERS = (CsvWriter, JsonWriter, JunitWriter, MarkdownWriter, NagiosWriter, PrometheusWriter, SarifWriter, TableWriter)


@pytest.mark.parametrize("writer", WRITERS)
def test_no_control_character_and_no_hidden_one_gets_through(writer: type, written: Write, hosts: list[HostResult]) -> None:
    for results in ([], hosts[:1], hosts):
        text = written(writer, results, unread=("x.json: \x1b[2J\u202e<b>",))
        assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)
        assert text.endswith("\n") or not results


# --- csv --------------------------------------------------------------------------------------------------------------------------


def test_csv_has_a_row_a_finding_and_no_formula(written: Write, hosts: list[HostResult]) -> None:
    text = written(CsvWriter, hosts)
    assert text.count("\r\n") == text.count("\n")
    rows = list(csv.DictReader(StringIO(text, newline="")))
    assert len(rows) == sum(len(each.report.findings) for each in hosts)
    assert Counter(row["verdict"] for row in rows) == Counter(each.verdict.value for host in hosts for each in host.report.findings)
    assert all(len(row) == len(COLUMNS) and None not in row for row in rows)
    assert not [cell for row in rows for cell in row.values() if cell.lstrip()[:1] in "=+-@" and cell]
    assert {(row["host_id"], row["stale"]) for row in rows} == {(hosts[0].report.host.id, "no"), (hosts[1].report.host.id, "yes")}


def test_csv_tells_a_host_without_findings_too(written: Write, build: SimpleNamespace) -> None:
    (row,) = csv.DictReader(StringIO(written(CsvWriter, [HostResult(build.report(), stale=False, source="a")]), newline=""))
    assert (row["host"], row["rule"]) == ("compute-17.example.net", "")


@pytest.mark.skipif(shutil.which("soffice") is None, reason="LibreOffice is not installed here")
def test_libreoffice_reads_the_csv_as_it_is(written: Write, hosts: list[HostResult], tmp_path: Path) -> None:
    (tmp_path / "report.csv").write_text(written(CsvWriter, hosts), newline="")
    command = ["soffice", "--headless", "--convert-to", "csv:Text - txt - csv (StarCalc):44,34,76", "--outdir", "out", "report.csv"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    again = list(csv.reader(StringIO((tmp_path / "out/report.csv").read_text(), newline="")))
    assert len(again) == 1 + sum(len(each.report.findings) for each in hosts)


# --- json -------------------------------------------------------------------------------------------------------------------------


def test_json_of_one_host_is_its_report_and_of_others_is_a_list(written: Write, build: SimpleNamespace) -> None:
    one = HostResult(build.report((build.domain(),), (build.finding(),)), stale=False, source="a")
    Draft202012Validator(schema("audit")).validate(json.loads(written(JsonWriter, [one])))
    for results in ([], [one, one], [one, one, one]):
        document = json.loads(written(JsonWriter, results, unread=("b.json: no",)))
        Draft202012Validator(schema("reports")).validate(document)
        assert len(document["reports"]) == document["summary"]["hosts"] == len(results)
        assert document["summary"]["unread"] == ["b.json: no"]


# --- junit ------------------------------------------------------------------------------------------------------------------------


def test_junit_keeps_failure_error_and_skipped_apart_and_unknown_is_no_pass(written: Write, hosts: list[HostResult]) -> None:
    suites = JUnitXml.fromstring(written(JunitWriter, hosts, unread=("b.json: no",)).encode())
    fresh, stale, unread = list(suites)
    kinds: Counter[str] = Counter()
    for case in fresh:
        outcome = case.result[0] if case.result else None
        kind = {Failure: "failure", Error: "error", Skipped: "skipped", type(None): "pass"}[type(outcome)]
        kinds[kind] += 1
        verdict = outcome.type if outcome is not None else "pass"
        expected = {
            "fail": "failure",
            "error": "error",
            "unknown": "error",
            "waived": "skipped",
            "not_applicable": "skipped",
            "pass": "pass",
        }
        assert kind == expected[verdict]
    assert (fresh.tests, fresh.failures, fresh.errors, fresh.skipped) == (kinds.total(), kinds["failure"], kinds["error"], kinds["skipped"])
    assert fresh.tests == len(hosts[0].report.findings)
    assert stale.errors == fresh.errors + 1
    assert stale.skipped == fresh.skipped + kinds["pass"]
    assert (unread.tests, unread.errors) == (1, 1)


# --- sarif ------------------------------------------------------------------------------------------------------------------------


def test_sarif_tells_kinds_suppressions_and_notifications(written: Write, hosts: list[HostResult], rules: dict[str, RuleText]) -> None:
    document = json.loads(written(SarifWriter, hosts, unread=("b.json: no",)))
    (run,) = document["runs"]
    kinds = Counter(each["kind"] for each in run["results"])
    verdicts = Counter(each.verdict for host in hosts for each in host.report.findings)
    stale = sum(each.verdict is Verdict.PASS for each in hosts[1].report.findings)
    assert kinds["fail"] == verdicts[Verdict.FAIL] + verdicts[Verdict.WAIVED]
    assert kinds["open"] == verdicts[Verdict.UNKNOWN] + verdicts[Verdict.ERROR] + stale
    assert (kinds["pass"], kinds["notApplicable"]) == (verdicts[Verdict.PASS] - stale, verdicts[Verdict.NOT_APPLICABLE])
    assert {each["level"] for each in run["results"] if each["kind"] != "fail"} == {"none"}
    assert sum("suppressions" in each for each in run["results"]) == verdicts[Verdict.WAIVED]
    ids = [each["id"] for each in run["tool"]["driver"]["rules"]]
    assert all(ids[each["ruleIndex"]] == each["ruleId"] for each in run["results"])
    told = {each["id"]: each for each in run["tool"]["driver"]["rules"]}
    assert told["RULE-1"]["shortDescription"]["text"] == rules["RULE-1"].title
    assert told["RULE-1"]["fullDescription"]["text"] == rules["RULE-1"].rationale
    assert told["RULE-2"]["shortDescription"]["text"] == "RULE-2"  # no rule of the policy here
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is False
    said = " ".join(each["message"]["text"] for each in invocation["toolExecutionNotifications"])
    assert "stale" in said
    assert "b.json" in said
    assert " broke: " in said


#: OASIS's schema of SARIF 2.1.0 (sarif-schema-2.1.0-rtm.5), as npm's @microsoft/jest-sarif 1.0.0-beta ships it under the MIT licence.
SARIF_SCHEMA = json.loads(Path(__file__).with_name("sarif-2.1.0-rtm.5.json").read_text())


def test_sarif_is_what_its_schema_says(written: Write, hosts: list[HostResult]) -> None:
    Draft4Validator.check_schema(SARIF_SCHEMA)
    for results in ([], hosts[:1], hosts):
        Draft4Validator(SARIF_SCHEMA).validate(json.loads(written(SarifWriter, results, unread=("b.json: no",))))
    with pytest.raises(ValidationError):
        Draft4Validator(SARIF_SCHEMA).validate({"version": "2.1.0"})


def test_sarif_s_fingerprint_is_of_rule_and_subject_alone(written: Write, build: SimpleNamespace) -> None:
    def fingerprints(*findings: object) -> list[str]:
        result = HostResult(build.report((), findings), stale=False, source="a")
        (run,) = json.loads(written(SarifWriter, [result]))["runs"]
        return [each["partialFingerprints"]["ruleAndSubject/v1"] for each in run["results"]]

    [before] = fingerprints(build.finding(Verdict.FAIL))
    [after] = fingerprints(build.finding(Verdict.PASS, reason="another"))
    [other] = fingerprints(build.finding(Verdict.FAIL, "OTHER"))
    assert before == after != other


# --- prometheus -------------------------------------------------------------------------------------------------------------------


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_prometheus_of_one_host_says_what_the_daemon_would(written: Write, build: SimpleNamespace) -> None:
    report = build.report((build.domain(),), (build.finding(Verdict.FAIL), build.finding(Verdict.PASS, "OTHER")))
    metrics = Metrics(jobs=(), rules=("DOM-PMU-LIVE", "OTHER"))
    counts = Counter((each.rule, each.verdict) for each in report.findings)
    metrics.observed(report.summary, report.host.kernel, counts, report.observed_at)
    daemon = samples(metrics.text())
    ours = samples(written(PrometheusWriter, [HostResult(report, stale=False, source="a")]))
    assert ours
    assert {key: daemon[key] for key in ours} == ours


def test_prometheus_tells_hosts_of_one_name_apart(written: Write, build: SimpleNamespace) -> None:
    twins = [HostResult(build.report(host_report=build.host(id=f"id-{number}")), stale=False, source="a") for number in range(2)]
    text = written(PrometheusWriter, twins)
    lines = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(set(lines)) == len(lines)


def test_prometheus_tells_hosts_apart_whose_long_names_begin_alike(written: Write, build: SimpleNamespace) -> None:
    hosts = [build.host(id=f"7f0c2a4e-0d51-4c6e-9b1f-2f1f5a3f9a1{number}", hostname=f"{'x' * 120}{number}") for number in range(3)]
    text = written(PrometheusWriter, [HostResult(build.report(host_report=host), stale=False, source="a") for host in hosts])
    lines = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(set(lines)) == len(lines)


def test_prometheus_of_several_hosts_has_a_series_a_host_and_sums(written: Write, hosts: list[HostResult]) -> None:
    found = samples(written(PrometheusWriter, hosts))
    assert sum(name == "exitguard_compliance_exit_code" for name, _ in found) == 2
    assert found["exitguard_fleet_stale_hosts", frozenset()] == 1
    assert sum(value for (name, _), value in found.items() if name == "exitguard_fleet_hosts") == 2


def test_promtool_has_nothing_to_say(written: Write, hosts: list[HostResult], promtool: str) -> None:
    for results in (hosts[:1], hosts):
        text = written(PrometheusWriter, results)
        done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


# --- nagios -----------------------------------------------------------------------------------------------------------------------


def told(*results: HostResult) -> Overview:
    overview = Overview()
    for result in results:
        overview.add(result)
    return overview


def of(build: SimpleNamespace, verdict: Verdict, severity: Severity = Severity.MEDIUM, *, stale: bool = False) -> HostResult:
    return HostResult(build.report((), (build.finding(verdict, severity=severity),)), stale=stale, source="a")


def test_nagios_states(build: SimpleNamespace) -> None:
    assert nagios_exit_code(told()) == UNKNOWN
    assert nagios_exit_code(told(of(build, Verdict.PASS))) == OK
    assert nagios_exit_code(told(of(build, Verdict.WAIVED))) == OK
    assert nagios_exit_code(told(of(build, Verdict.FAIL))) == WARNING
    assert nagios_exit_code(told(of(build, Verdict.FAIL, Severity.HIGH))) == CRITICAL
    assert nagios_exit_code(told(of(build, Verdict.PASS, stale=True))) == UNKNOWN
    assert nagios_exit_code(told(of(build, Verdict.FAIL), of(build, Verdict.UNKNOWN))) == UNKNOWN
    assert nagios_exit_code(told(of(build, Verdict.FAIL, Severity.HIGH), of(build, Verdict.ERROR))) == CRITICAL
    broken = told(of(build, Verdict.PASS))
    broken.unread = ["b.json: no"]
    assert nagios_exit_code(broken) == UNKNOWN


@pytest.mark.parametrize("asked", list(Verdict))
def test_nagios_state_is_that_of_all_findings_whatever_was_asked_for(build: SimpleNamespace, asked: Verdict) -> None:
    failing = of(build, Verdict.FAIL, Severity.HIGH)
    assert nagios_exit_code(told(failing.only({asked}))) == CRITICAL


def test_nagios_line_is_one_with_numbers_behind_its_only_bar(written: Write, hosts: list[HostResult]) -> None:
    first, *rest = written(NagiosWriter, hosts, unread=("a|b",)).splitlines()
    said, bar, numbers = first.partition(" | ")
    assert re.fullmatch(r"EXITGUARD (OK|WARNING|CRITICAL|UNKNOWN) - .+", said)
    assert bar
    assert all(re.fullmatch(r"[a-z_]+=[0-9]+;;;0", each) for each in numbers.split(" "))
    assert "|" not in said
    assert not any("|" in line for line in rest)


# --- markdown ---------------------------------------------------------------------------------------------------------------------


def test_markdown_renders_without_any_markup_of_others(written: Write, hosts: list[HostResult]) -> None:
    text = written(MarkdownWriter, hosts, unread=("<b>x</b>",), group_by=GroupKey.CHAIN)
    rendered = MarkdownIt("commonmark", {"html": True, "linkify": False}).enable("table").render(text)
    tags = set(re.findall(r"</?([a-zA-Z][a-zA-Z0-9]*)", rendered))
    assert tags <= {"h2", "h3", "p", "ol", "ul", "li", "strong", "code", "table", "thead", "tbody", "tr", "th", "td"}
    tables = re.findall(r"<table>.*?</table>", rendered, re.DOTALL)
    assert tables
    for table in tables:
        widths = {row.count("<td") + row.count("<th") - row.count("<thead") for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)}
        assert len(widths) == 1


def test_markdown_says_first_how_it_stands(written: Write, build: SimpleNamespace) -> None:
    text = written(MarkdownWriter, [of(build, Verdict.PASS, stale=True)])
    assert text.startswith("## exitguard: UNKNOWN\n\n1 host: 1 unknown;")
    assert "stale" in text
