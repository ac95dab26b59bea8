"""Alert rules and dashboard: promtool takes them, every alert is tried both ways, and both ask for what the agent really exports."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from exitguard.daemon.metrics import Metrics
from exitguard.daemon.service import JOBS
from exitguard.model.rates import PerSecond
from exitguard.policy.load import load_rulebook

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES, CASES = DEPLOY / "prometheus/exitguard.rules.yaml", DEPLOY / "prometheus/exitguard.test.yaml"
DASHBOARD = DEPLOY / "grafana/exitguard.json"
GUIDE = DEPLOY.parent / "docs/monitoring.md"
#: Of others, and of which nothing is promised here.
_OTHERS = {"node_exporter_build_info", "process_cpu_seconds_total"}
#: What neither asks for: how much there is, not whether it is well.
_UNUSED = {
    "exitguard_job_last_success_timestamp_seconds",
    "exitguard_lifecycle_events_total",
    "exitguard_pending_domains",
    "exitguard_reloads_total",
    "exitguard_store_bytes",
}


def run(promtool: str, *words: str | Path) -> str:
    done = subprocess.run([promtool, *map(str, words)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def dashboard_expressions() -> Iterator[str]:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"].replace("$instance", ".*")


def exported() -> set[str]:
    """Names of every metric that the daemon writes, by its own text."""
    metrics = Metrics(jobs=JOBS, rules=[rule.id for rule in load_rulebook().policy.rules])
    known = PerSecond(low=1, high=2)
    metrics.booked(known, known, known)
    return {line.split()[2] for line in metrics.text().splitlines() if line.startswith("# TYPE")}


def asked_for(expression: str) -> set[str]:
    """The metrics of an expression; recorded ones, which have colons, are none of the agent's."""
    return set(re.findall(r"(?<![:\w])(?:exitguard|process|node)_[a-z0-9_]+(?![:\w])", expression))


def test_promtool_takes_the_rules(promtool: str) -> None:
    run(promtool, "check", "rules", RULES)


def test_every_alert_fires_where_it_has_to_and_not_where_it_must_not(promtool: str) -> None:
    run(promtool, "test", "rules", CASES)


def test_every_rule_has_its_case() -> None:
    cases = yaml.safe_load(CASES.read_text())["tests"]
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    tried = [each for case in cases for each in case.get("alert_rule_test", ())]
    assert {each["alertname"] for each in tried if each["exp_alerts"]} == alerts
    assert {each["alertname"] for each in tried if not each["exp_alerts"]} == alerts
    summed = " ".join(each["expr"] for case in cases for each in case.get("promql_expr_test", ()))
    assert all(rule["record"] in summed for rule in rules() if "record" in rule)


def test_every_alert_says_what_to_run_next_and_stands_in_the_guide() -> None:
    guide = GUIDE.read_text()
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in {"critical", "warning", "info"}
            assert re.search(r"exitguard |systemctl |df ", rule["annotations"]["description"]), rule["alert"]
            assert f"`{rule['alert']}`" in guide


def test_every_expression_of_the_dashboard_is_one(promtool: str, tmp_path: Path) -> None:
    made = [{"record": f"panel:{number}", "expr": expression} for number, expression in enumerate(dashboard_expressions())]
    assert len(made) > 20
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": made}]}))
    run(promtool, "check", "rules", tmp_path / "rules.yaml")


def test_only_what_the_agent_exports_is_asked_for_and_nothing_is_forgotten() -> None:
    asked = set().union(*map(asked_for, [*dashboard_expressions(), *(rule["expr"] for rule in rules())]))
    names = exported()
    assert asked - _OTHERS - names == set()
    assert {name for name in names if name.startswith("exitguard_")} - asked == _UNUSED


def test_panels_lie_beside_each_other_and_each_has_a_name() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["title"] for panel in panels)


@pytest.mark.parametrize("text", ["exitguard_no_such_metric > 1", "process_no_such > 1"])
def test_metric_that_nobody_exports_would_be_found(text: str) -> None:
    assert asked_for(text) - _OTHERS - exported()
