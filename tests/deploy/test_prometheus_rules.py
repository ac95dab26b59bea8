"""Prometheus's rules and Grafana's dashboard: promtool understands them, and they ask for nothing that exitguard does not export."""

import json
import re
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from exitguard.cli.examples import EXAMPLES
from exitguard.daemon.metrics import Metrics
from exitguard.daemon.service import JOBS
from exitguard.model.rates import PerSecond
from exitguard.report.formats.as_prometheus import PrometheusWriter
from exitguard.report.formats.writer import Setting
from exitguard.report.overview import Overview
from exitguard.report.page import Look

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy/prometheus/exitguard.rules.yaml"
UNIT_TESTS = ROOT / "deploy/prometheus/exitguard.test.yaml"
DASHBOARD = ROOT / "deploy/grafana/exitguard.json"
GUIDE = ROOT / "docs/monitoring.md"
POLICY = ROOT / "policies/pmu-off.yaml"
#: What is exported and stands in no rule and no panel, and why.
NOT_USED = {
    "exitguard_fleet_hosts": "the hosts are counted from their own series, which can be selected",
    "exitguard_fleet_stale_hosts": "as above, by the time of each host's audit",
    "exitguard_reloads_total": "what counts is whether the last one was refused",
    "exitguard_spool_bytes": "what counts is that records wait",
    "exitguard_pushed_records_total": "how many is no matter of health",
    "exitguard_push_refused_records_total": "the hub shows each as a gap, with its reason",
    "exitguard_process_virtual_memory_bytes": "says nothing about memory that is used",
    "exitguard_process_max_fds": "the unit sets no limit of its own",
}
#: Labels that Prometheus adds to what it scrapes; `exported_job` is what it makes of the daemon's `job`.
OF_THE_SCRAPE = {"instance", "job", "exported_job"}
#: What Grafana puts into an expression, as it could be.
VARIABLES = {"$__rate_interval": "5m", "$instance": ".*", "$host": ".*", "$gigahertz": "2.5"}
SEVERITIES = {"critical", "warning", "info"}

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_SELECTOR = re.compile(r"\b([a-zA-Z_:][\w:]*)\s*\{([^}]*)\}")
_DURATION = re.compile(r"\[[^\]]*\]")
_NAME = re.compile(r"(?<![\w:$.])([a-zA-Z_:][\w:]*)(?!\s*\(|[\w:])")
_OPERATORS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}


def names_in(expression: str) -> set[str]:
    """The metrics that a PromQL expression asks for: every name that is no function, operator, label or text."""
    bare = _GROUPING.sub(" ", _DURATION.sub(" ", _STRING.sub('""', expression)))
    bare = re.sub(r"\{[^}]*\}", " ", bare)
    return {name for name in _NAME.findall(bare) if name.lower() not in _OPERATORS}


def labels_in(expression: str) -> Iterator[tuple[str, str]]:
    """Each metric with a label by which it is selected."""
    for metric, matchers in _SELECTOR.findall(_STRING.sub('""', expression)):
        for label in re.findall(r"(\w+)\s*[=!]", matchers):
            yield metric, label


def exported() -> dict[str, set[str]]:
    """The labels of every series that daemon and reports export, by its name."""
    metrics = Metrics(jobs=JOBS, rules=["A-RULE"])
    some = PerSecond(low=0, high=1)
    metrics.booked(some, some, some)
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.text()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    # Of reports every family is there whatever they hold; several hosts are told apart by the label `host`.
    told = "".join(PrometheusWriter(Setting(generated_at=datetime.now(UTC), look=Look())).end(Overview()))
    of_reports = set(re.findall(r"^# TYPE (\S+) gauge$", told, re.MULTILINE))
    return {name: found.get(name, set()) | ({"host"} if name in of_reports else set()) for name in found.keys() | of_reports}


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def dashboard_expressions() -> list[str]:
    """As Prometheus gets them, with something in place of each variable; those of the variables themselves included."""
    texts = [target["expr"] for panel in panels() for target in panel.get("targets", ())]
    variables = json.loads(DASHBOARD.read_text())["templating"]["list"]
    texts += re.findall(r"label_values\((.*), \w+\)", "\n".join(each["definition"] for each in variables if each["type"] == "query"))
    for variable, value in VARIABLES.items():
        texts = [text.replace(variable, value) for text in texts]
    return texts


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


# What promtool says


def test_rules_are_understood(promtool: str) -> None:
    result = run(promtool, "check", "rules", "--lint-fatal", RULES)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{len(rules())} rules found" in result.stdout


def test_alerts_fire_when_they_should_and_not_else(promtool: str) -> None:
    result = run(promtool, "test", "rules", UNIT_TESTS)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("planted", "told"),
    [
        (('{verdict="fail", rule!~', '{verdict="pass", rule!~'), "ExitguardRuleFailing"),
        (('"task", "/", "exported_job", "job")', '"task", "/", "job")'), "ExitguardJobFailing"),
        (
            ("exitguard_libvirt_connected == 0\n        for: 30m", "exitguard_libvirt_connected == 0\n        for: 1m"),
            "ExitguardLibvirtLost",
        ),
    ],
)
def test_planted_fault_fails_the_unit_tests(promtool: str, planted: tuple[str, str], told: str, tmp_path: Path) -> None:
    before, after = planted
    text = RULES.read_text()
    assert before in text
    (tmp_path / RULES.name).write_text(text.replace(before, after))
    document = yaml.safe_load(UNIT_TESTS.read_text())
    # Those of the alert alone: a whole run takes several seconds.
    document["tests"] = [test for test in document["tests"] if told in {each["alertname"] for each in fired(test)}]
    (tmp_path / UNIT_TESTS.name).write_text(yaml.safe_dump(document))
    result = run(promtool, "test", "rules", tmp_path / UNIT_TESTS.name)
    assert result.returncode != 0
    assert f"alertname: {told}" in result.stdout + result.stderr


def test_every_expression_of_the_dashboard_is_understood(promtool: str, tmp_path: Path) -> None:
    expressions = dashboard_expressions()
    assert len(expressions) > 30
    assert not [text for text in expressions if "$" in text.replace('"$1"', "")]
    listed = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(expressions)]
    file = tmp_path / "dashboard.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": listed}]}))
    result = run(promtool, "check", "rules", file)
    assert result.returncode == 0, result.stdout + result.stderr


# What exitguard exports


def test_names_in_an_expression_are_found() -> None:
    text = (
        'sum by (rule) (rate(a_total{x="b_c"}[5m])) / on (host) group_left (z) level:d:sum unless absent(e) or 1e9 * f offset 1h > bool 2'
    )
    assert names_in(text) == {"a_total", "level:d:sum", "e", "f"}
    assert list(labels_in(text)) == [("a_total", "x")]


def test_rules_ask_for_nothing_that_is_not_exported() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    assert {name for rule in rules() for name in names_in(rule["expr"])} - recorded <= exported().keys()


def test_dashboard_asks_for_nothing_that_is_not_exported() -> None:
    """Not for a recorded rule either: the dashboard works where no rule is loaded."""
    assert {name for text in dashboard_expressions() for name in names_in(text)} <= exported().keys()


def test_series_are_selected_by_labels_that_they_have() -> None:
    known = exported()
    # What is recorded about a host has the labels of a host, what is counted by rule and verdict those two.
    known |= {"exitguard:last_observation_age_seconds": {"host"}, "rule_verdict:exitguard_hosts:count": {"rule", "verdict"}}
    texts = [rule["expr"] for rule in rules()] + dashboard_expressions()
    asked = {(metric, label) for text in texts for metric, label in labels_in(text)}
    # A host of the daemon's is one without the label `host`.
    of_no_report = {(metric, "host") for metric, _ in asked if "host" not in known[metric]}
    assert {(metric, label) for metric, label in asked - of_no_report if label not in known[metric] | OF_THE_SCRAPE} == set()
    assert {metric for metric, label in asked & of_no_report if label == "host"} <= {"exitguard_unquantified_skip_exits_per_second"}


def test_everything_exported_is_used_or_left_out_on_purpose() -> None:
    used = {name for rule in rules() for name in names_in(rule["expr"])} | {
        name for text in dashboard_expressions() for name in names_in(text)
    }
    assert exported().keys() - used == NOT_USED.keys()


def test_verdicts_and_states_that_are_asked_for_exist() -> None:
    text = RULES.read_text() + DASHBOARD.read_text().replace('\\"', '"')
    documented = (ROOT / "docs/metrics.md").read_text()
    for values in re.findall(r'\b(?:verdict|state|chain_state|outcome|bound)=~?"([\w|]+)"', text):
        for value in values.split("|"):
            assert f"`{value}`" in documented, value


# What an operator gets


def fired(test: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for each in test.get("alert_rule_test", ()) if each["exp_alerts"]]


@pytest.mark.parametrize("alert", sorted(alerts()))
def test_alert_is_tested_both_ways(alert: str) -> None:
    checks = [each for test in yaml.safe_load(UNIT_TESTS.read_text())["tests"] for each in test.get("alert_rule_test", ())]
    outcomes = {bool(each["exp_alerts"]) for each in checks if each["alertname"] == alert}
    assert outcomes == {True, False}


@pytest.mark.parametrize(("alert", "rule"), sorted(alerts().items()))
def test_alert_says_how_bad_it_is_what_it_is_and_what_to_run(alert: str, rule: dict[str, Any]) -> None:
    assert alert.startswith("Exitguard")
    assert rule["labels"]["severity"] in SEVERITIES
    assert re.fullmatch(r"[1-9]\d*[mh]", rule["for"])
    assert 10 < len(rule["annotations"]["summary"]) < 120
    commands = re.findall(r"`exitguard ([a-z]+)([^`]*)`", rule["annotations"]["description"])
    assert commands
    assert {verb for verb, _ in commands} <= {name.partition(" ")[0] for name in EXAMPLES}
    explained = {word.strip() for verb, word in commands if verb == "explain"} - {"{{ $labels.rule }}"}
    assert explained <= set(re.findall(r"^  - id: (\S+)$", POLICY.read_text(), re.MULTILINE))


def test_only_a_guest_that_is_worse_off_wakes_somebody() -> None:
    assert {name for name, rule in alerts().items() if rule["labels"]["severity"] == "critical"} == {"ExitguardOptOutViolated"}


def test_rules_that_an_expression_names_are_in_the_policy() -> None:
    named = set(re.findall(r"\b(?:HOST|DOM|NOVA|POLICY)-[A-Z-]+\b", RULES.read_text() + DASHBOARD.read_text()))
    assert len(named) >= 2
    assert named <= set(re.findall(r"^  - id: (\S+)$", POLICY.read_text(), re.MULTILINE))


def test_guide_has_every_alert_and_no_other() -> None:
    assert set(re.findall(r"^\| `(Exitguard\w+)` \|", GUIDE.read_text(), re.MULTILINE)) == alerts().keys()


def test_dashboard_can_be_imported_anywhere() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert {"datasource", "instance", "host"} <= {each["name"] for each in dashboard["templating"]["list"]}
    sources = [each["datasource"] for panel in panels() for each in (panel, *panel.get("targets", ())) if "datasource" in each]
    assert {source["uid"] for source in sources} == {"${datasource}"}
    assert "id" not in dashboard  # of the Grafana that exported it
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_no_panel_lies_on_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
