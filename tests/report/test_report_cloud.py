"""The page of a cloud, and the same for programs, spreadsheets and tickets."""

import csv
import io
import json
import re

import pytest
from cloud_samples import (
    KINDS,
    PROJECT,
    cloud_finding,
    compute,
    facts,
    finding,
    flavor,
    forbidden,
    identity,
    instance,
    notes,
    one_of_each,
    report,
)
from jsonschema import Draft202012Validator

from exitguard.model.finding import Severity, Subject, SubjectKind, Verdict
from exitguard.model.instance import CloudReport, CloudSummary, PmuOrigin
from exitguard.model.pmu import PmuSetting, Tri
from exitguard.report.cloud_facts_table import cloud_facts_table
from exitguard.report.cloud_groups import GroupBy, group_instances
from exitguard.report.cloud_instances import MOST_COMPUTES, MOST_ROWS
from exitguard.report.cloud_json import json_pieces
from exitguard.report.cloud_markdown import cloud_csv, cloud_markdown
from exitguard.report.cloud_table import cloud_table
from exitguard.report.cloud_tenant import tenant_report
from exitguard.report.json_document import json_text
from exitguard.report.page import Look
from exitguard.schemas import schema

LOOK = Look()


def page(of: CloudReport, look: Look = LOOK) -> str:
    """The page with white space evened out: where lines break is not what a test is about."""
    return " ".join(cloud_table(of, look).split())


def test_the_sums_come_first_then_what_fails_then_what_to_do() -> None:
    text = cloud_table(report(one_of_each(), (finding(),), (compute(),)), LOOK)
    places = [text.index(title) for title in ("NOT COMPLIANT", "Instances", "Findings", "What to do next", "Compute hosts", "Where their")]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("verdicts", "word"),
    [
        ((Verdict.FAIL, Verdict.UNKNOWN), "NOT COMPLIANT production: 1 check fails, 1 undecided."),
        ((Verdict.UNKNOWN,), "UNKNOWN production: 1 check could not be decided."),
        ((Verdict.ERROR, Verdict.FAIL), "ERROR production: 1 check broke"),
        ((Verdict.WAIVED,), "COMPLIANT production: 11 checks pass, but for 1 waived."),
        ((), "COMPLIANT production: 11 checks pass."),
    ],
)
def test_first_line_is_the_verdict_on_the_cloud(verdicts: tuple[Verdict, ...], word: str) -> None:
    assert page(report(one_of_each(), tuple(finding(verdict=each) for each in verdicts))).startswith(word)


def test_cloud_of_which_no_rule_was_judged_is_not_called_compliant() -> None:
    nothing = CloudSummary(by_verdict={}, by_origin={}, by_next_setting={}, exit_code=0)
    text = page(report(summary=nothing))
    assert text.startswith("NOTHING JUDGED")
    assert "no rule was judged" in text


def test_what_passes_is_told_by_the_sums_since_it_is_not_among_the_findings() -> None:
    assert "11 pass · 4 not applicable" in page(report(one_of_each()))
    assert "11 pass · 4 not applicable" in page(report(one_of_each(), (finding(),)))


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("off_and_kept", "flavor off → off → off"),
        ("off_next", "remedy (on) → - → off"),
        ("on_by_default", "QEMU default (on) → (on) → (on)"),
        ("opted_out", "image on → on → on"),
        ("conflict", "conflict on → on → fails"),
        ("behind_nova", "behind Nova off → (on) → (on)"),
        ("unknown", "unknown ? → ? → ?"),
    ],
)
def test_row_tells_where_the_setting_comes_from_and_what_comes_next(kind: str, row: str) -> None:
    assert f"web-1 m1.small {row}" in page(report((instance(kind=kind),)))


def test_conflict_is_said_before_it_happens_and_first() -> None:
    text = page(report((instance("db-1", "conflict"),), (finding("NOVA-INSTANCE-CONFLICT", severity=Severity.HIGH),)))
    assert "1. Let nobody stop, start or hard reboot db-1" in text


def test_remedies_lead_to_a_plan_for_this_cloud() -> None:
    text = page(report((instance(),), (finding(remedy="nova_instance_pmu_off"),), cloud=identity(name="my cloud")))
    assert "Remedy nova_instance_pmu_off would mend NOVA-INSTANCE-PMU" in text
    assert "`exitguard plan --cloud 'my cloud'` shows what they would change" in text


def test_owners_of_instances_that_are_on_by_default_are_to_be_asked() -> None:
    assert f"Ask the owners of 1 instance: `exitguard nova report --project PROJECT` is a page for them. 1 project: {PROJECT}" in page(
        report((instance(),))
    )
    assert "Ask the owners" not in page(report((instance(kind="off_and_kept"),)))


def test_what_a_role_may_not_see_is_named_with_the_policy_and_a_way_out() -> None:
    text = page(report(one_of_each(), (cloud_finding(),)))
    assert "os_compute_api:os-hypervisors:list-detail is not allowed to this role" in text
    assert "Let it see more: NOVA-SOURCES above names the policies of the API that a role needs" in text


def test_all_that_was_not_seen_is_told_however_long_the_sentence_is() -> None:
    reason = "; ".join(f"part {number} could not be seen, which takes some words to say" for number in range(20))
    told = tuple(one.model_copy(update={"value": f"not seen: part {number}"}) for number in range(11) for one in finding().evidence)
    text = page(report(one_of_each(), (cloud_finding(reason).model_copy(update={"evidence": told}),)))
    assert all(f"not seen: part {number}" in text for number in range(11))


def test_cloud_whose_compute_hosts_were_not_shown_is_not_said_to_have_none() -> None:
    assert "No facts of its compute hosts were given" in page(report(one_of_each()))


def test_without_facts_of_hosts_the_page_says_what_is_not_known_and_how_to_get_them() -> None:
    text = page(report(one_of_each(), (), (compute(host_id=None),), hosts_joined=0))
    assert "No facts of its 1 compute host were given" in text
    assert "playbooks/facts.yml" in text
    assert "playbooks/facts.yml" not in page(report(one_of_each(), (), (compute(),)))


def test_waiver_faults_are_to_be_corrected_in_their_files() -> None:
    about = Subject(kind=SubjectKind.POLICY, id="CHG-1", name="CHG-1")
    fault = finding("WAIVERS", Verdict.ERROR, subject=about)
    place = fault.evidence[0].model_copy(update={"source": "/etc/exitguard/waivers.yaml:7"})
    text = page(report((), (fault.model_copy(update={"evidence": (place,)}), finding("WAIVERS", Verdict.FAIL, subject=about))))
    assert "`exitguard waiver check /etc/exitguard/waivers.yaml`" in text
    assert "Renew, correct or remove 1 waiver that covers nothing: CHG-1" in text
    assert "A check broke" not in text


def test_check_that_broke_is_a_defect_to_report() -> None:
    assert "A check broke; that is a defect, report it with its reason above: NOVA-INSTANCE-PMU" in page(
        report((), (finding(verdict=Verdict.ERROR),))
    )


def test_computes_are_told_by_what_their_nova_defaults_to_the_doubtful_first() -> None:
    text = page(report((), (), (compute("a-host"), compute("b-host", Tri.YES), compute("c-host", Tri.UNKNOWN))))
    assert "Nova's default for the PMU: off on 1, none on 1, not known of 1" in text
    assert text.index("c-host") < text.index("a-host") < text.index("b-host")


def test_many_instances_and_hosts_stay_one_page_that_says_how_to_see_all() -> None:
    kinds = list(KINDS)
    many = tuple(instance(f"web-{number}", kinds[number % 7], number=number, flavor=f"m1.{number % 50}") for number in range(2000))
    findings = tuple(finding(about=each, reason=f"reason {each.name}") for each in many)
    text = cloud_table(report(many, findings, tuple(compute(f"host-{number}") for number in range(500))), LOOK)
    assert len(text.split("\n")) < 150
    assert "--format csv or json" in text
    assert f"… and {500 - MOST_COMPUTES:,} more" in text
    # 350 different rows, the first 30 of them shown; each stands for 5 or 6 instances.
    assert int(re.findall(r"… and ([\d,]+) more\n", text)[-1].replace(",", "")) in range(2000 - MOST_ROWS * 6, 2000 - MOST_ROWS * 5 + 1)
    counted = re.findall(r"^  (?:[\w ]+?)  +([\d,]+)  ", text.split("Findings")[0], flags=re.MULTILINE)
    assert sum(int(number.replace(",", "")) for number in counted) == 2000


def test_equal_instances_share_a_row_where_there_are_many() -> None:
    text = page(report(tuple(instance(f"web-{number:02}", number=number) for number in range(40))), Look(width=120))
    assert "40 instances: web-00, web-01, web-02 …" in text


def test_pages_fit_their_width() -> None:
    of = report(one_of_each(), (finding(), cloud_finding()), (compute(),))
    for width in (32, 60, 80, 120):
        assert all(len(line) <= width for line in cloud_table(of, Look(width=width)).split("\n"))


# For programs


@pytest.mark.parametrize(
    "document",
    [
        report(),
        report(one_of_each(), (finding(),), (compute(),)),
        facts(one_of_each(), **notes()),
        group_instances(report(one_of_each()), GroupBy.FLAVOR),
        tenant_report(report(one_of_each()), facts(one_of_each()), PROJECT),
        report((instance("\x7f\u202e\x00[red]", "unknown"),)),
    ],
    ids=["empty", "report", "facts", "groups", "tenant", "hostile"],
)
def test_json_in_pieces_is_the_json_at_once(document: CloudReport) -> None:
    assert "".join(json_pieces(document)) == json_text(document)


def test_documents_fit_their_published_schemas() -> None:
    of, cloud = report(one_of_each(), (finding(),), (compute(),)), facts(one_of_each(), hypervisors=forbidden(), **notes())
    documents = {
        "cloud-facts": cloud,
        "cloud-report": of,
        "cloud-groups": group_instances(of, GroupBy.HOST),
        "cloud-tenant": tenant_report(of, cloud, PROJECT),
    }
    for name, document in documents.items():
        Draft202012Validator(schema(name)).validate(json.loads(json_text(document)))


# For spreadsheets and tickets


def test_csv_has_every_instance_with_its_verdicts() -> None:
    of = report(one_of_each(), (finding(about=one_of_each()[2]), finding("NOVA-INSTANCE-DRIFT", Verdict.UNKNOWN, about=one_of_each()[2])))
    rows = list(csv.DictReader(io.StringIO("".join(cloud_csv(of, LOOK)))))
    assert [row["standing"] for row in rows] == list(KINDS)
    assert (rows[2]["fail"], rows[2]["unknown"], rows[2]["waived"]) == ("NOVA-INSTANCE-PMU", "NOVA-INSTANCE-DRIFT", "")
    assert rows[2]["origin"] == "qemu_default"


def test_csv_tells_a_silent_property_from_one_that_was_not_shown() -> None:
    of = report((instance(kind="on_by_default"), instance(kind="unknown"), instance(kind="opted_out")))
    rows = list(csv.DictReader(io.StringIO("".join(cloud_csv(of, LOOK)))))
    assert [row["image_hw_pmu"] for row in rows] == ["silent", "", "true"]


def test_markdown_has_the_sums_and_each_finding_that_is_not_well() -> None:
    findings = (finding(remedy="nova_instance_pmu_off"), cloud_finding(), finding("NOVA-INSTANCE-DRIFT", Verdict.PASS))
    text = "".join(cloud_markdown(report(one_of_each(), findings), LOOK))
    assert text.startswith("## NOT COMPLIANT: `production`\n")
    assert "| **all** | 7 |" in text
    assert "### FAIL `NOVA-INSTANCE-PMU`, severity medium" in text
    assert "### UNKNOWN `NOVA-SOURCES`" in text
    assert "NOVA-INSTANCE-DRIFT" not in text


def test_markdown_of_many_findings_is_bounded_and_says_so() -> None:
    text = "".join(cloud_markdown(report((), tuple(finding(reason=f"r{number}") for number in range(1000))), LOOK))
    assert text.count("\n| instance") < 100
    assert "… and 950 more" in text


# Facts


def test_facts_page_tells_each_source_or_why_it_was_not_seen() -> None:
    cloud = facts(
        one_of_each(),
        (flavor(), flavor("off", "false"), flavor("on", "TRUE"), flavor("odd", "maybe"), flavor("hidden", None)),
        hypervisors=forbidden(),
        **notes(),
    )
    text = " ".join(cloud_facts_table(cloud, LOOK).split())
    for part in (
        "hw:pmu=true 1: on",
        "hw:pmu=false 1: off",
        "not a boolean 1: odd",
        "silent 1: m1.small",
        "not shown 1: hidden",
        "Hypervisors not seen 403: the role may not (os-hypervisors/detail)",
        "would be shown by os_compute_api:os-hypervisors:list-detail",
        "enabled, up 1: compute-1",
        "stored hw_pmu set on 1 instance",
        "canary: element absent, Nova 26.2.2",
    ):
        assert part in text


def test_facts_page_says_that_only_one_project_was_seen_and_which_notes_could_not_be_read() -> None:
    cloud = facts(one_of_each()).model_copy(update={"scope": "project", "notices": ("/x/y.json: not read: damaged",)})
    text = " ".join(cloud_facts_table(cloud, LOOK).split())
    assert "the servers of its own project alone" in text
    assert "/x/y.json: not read: damaged" in text
    assert "its own project alone" not in " ".join(cloud_facts_table(facts(), LOOK).split())


def test_setting_that_is_off_by_default_counts_as_off() -> None:
    off = instance(persistent=PmuSetting.DEFAULT_OFF, live=PmuSetting.DEFAULT_OFF, next_setting=PmuSetting.DEFAULT_OFF)
    text = page(report((off.model_copy(update={"origin": PmuOrigin.QEMU_DEFAULT}),)))
    assert "off and kept 1" in text
    assert "(off) → (off) → (off)" in text
