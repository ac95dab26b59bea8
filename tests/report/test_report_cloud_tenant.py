"""What is handed to a tenant: their instances, what they can do, and nothing of anybody else's."""

import json
from typing import Any

import pytest
from cloud_samples import PROJECT, cloud_finding, compute, facts, finding, flavor, instance, one_of_each, report
from hypothesis import given
from hypothesis import strategies as st

from exitguard.model.cloud import CloudFacts
from exitguard.model.evidence import Evidence
from exitguard.model.instance import CloudReport
from exitguard.report.cloud_groups import Standing
from exitguard.report.cloud_json import json_pieces
from exitguard.report.cloud_tenant import tenant_csv, tenant_markdown, tenant_report
from exitguard.report.page import Look

LOOK = Look()
#: Every text that is not the tenant's own begins so.
FOREIGN = "elsewhere-"
_HOST = {"zone": f"{FOREIGN}zone", "host": f"{FOREIGN}host", "host_id": f"{FOREIGN}host-id", "build": f"{FOREIGN}build"}
_REASONS = {"origin_reason": f"2 witnesses on {FOREIGN}host", "survives_reason": f"beside {FOREIGN}instance"}


def told(of: CloudReport, cloud: CloudFacts | None = None) -> dict[str, str]:
    found = tenant_report(of, cloud or facts(of.instances), PROJECT)
    return {
        "markdown": "".join(tenant_markdown(found, LOOK)),
        "csv": "".join(tenant_csv(found, LOOK)),
        "json": "".join(json_pieces(found)),
    }


def everything_of_others(**own: Any) -> tuple[CloudReport, CloudFacts]:
    """A report and facts in which all but the tenant's own instances' names, ids, flavors and images is marked as foreign."""
    evidence = (Evidence(source=f"{FOREIGN}source", value=f"{FOREIGN}value", observed_at=report().observed_at),)
    mine = tuple(each.model_copy(update={**_HOST, **_REASONS, "evidence": evidence, **own}) for each in one_of_each())
    theirs = tuple(
        instance(f"{FOREIGN}{kind.name}", kind.value, number=100 + number, project=f"{FOREIGN}project", flavor=f"{FOREIGN}flavor", **_HOST)
        for number, kind in enumerate(Standing)
    )
    computes = (compute(f"{FOREIGN}host", aggregates=(f"{FOREIGN}aggregate",), builds=(f"{FOREIGN}build",), reason=f"{FOREIGN}reason"),)
    findings = (finding(about=mine[0], reason=f"{FOREIGN}reason"), finding(about=theirs[0]), cloud_finding(f"{FOREIGN}reason"))
    cloud = facts(
        (*mine, *theirs),
        (flavor("m1.off", "false"), flavor("m1.on", "true"), flavor(f"{FOREIGN}private", "false", is_public=False)),
    )
    of = report((*mine, *theirs), findings, computes)
    named = {"id": f"{FOREIGN}cloud", "name": f"{FOREIGN}cloud", "region": f"{FOREIGN}region"}
    return of.model_copy(update={"policy": f"{FOREIGN}policy", "cloud": of.cloud.model_copy(update=named)}), cloud.model_copy(
        update={"cloud": of.cloud.model_copy(update=named)}
    )


def test_nothing_of_other_tenants_and_nothing_of_hosts_is_told() -> None:
    of, cloud = everything_of_others()
    assert FOREIGN in "".join(json_pieces(of))
    for form, text in told(of, cloud).items():
        assert FOREIGN not in text, form
        assert "web-1" not in text
        assert all(each.name in text for each in one_of_each()), form


def test_document_has_no_other_field_than_those_that_may_be_told() -> None:
    document = json.loads(told(report(one_of_each()))["json"])
    assert set(document) == {"schema_version", "tool", "observed_at", "project", "flavors_off", "flavors_on", "total", "instances"}
    assert {key for each in document["instances"] for key in each} == {
        "uuid",
        "name",
        "status",
        "flavor",
        "image",
        "standing",
        "pmu_now",
        "pmu_next",
    }


@given(st.text(max_size=40))
def test_name_of_an_own_instance_adds_nothing_of_others(name: str) -> None:
    of, cloud = everything_of_others(name=name)
    assert all(FOREIGN not in text for text in told(of, cloud).values())


@pytest.mark.parametrize(
    ("kind", "sentence", "row"),
    [
        ("off_and_kept", "These start without a PMU, each time", "| off | off |"),
        ("off_next", "These lose their PMU at their next start", "| - | off |"),
        ("on_by_default", "These have a PMU, because nobody said otherwise", "| on | on |"),
        ("opted_out", "These keep their PMU, as was asked for", "| on | on |"),
        ("conflict", "Do not stop or hard reboot these", "| on | does not start |"),
        ("behind_nova", "These are not as OpenStack set them up", "| on | on |"),
        ("unknown", "Of these we cannot tell", "| not known | not known |"),
    ],
)
def test_owner_is_told_which_instances_keep_or_lose_their_pmu(kind: str, sentence: str, row: str) -> None:
    text = told(report((instance("db-1", kind),)))["markdown"]
    assert text.count("\n## ") == 2  # this one, and how to keep the PMU
    assert f"\n## {sentence}\n" in text
    assert next(line for line in text.split("\n") if "db-1" in line).endswith(row)


def test_owner_is_told_what_they_can_do_themselves() -> None:
    text = told(report((instance(),)), facts((), (flavor("m1.off", "false"), flavor("m1.on", "true"), flavor())))["markdown"]
    for part in ("stop the instance", "resize it to a flavor", "Flavors with the PMU off: `m1.off`.", "hw_pmu=true", "`m1.on`"):
        assert part in text
    assert "m1.small`." not in text


def test_only_public_flavors_are_offered() -> None:
    cloud = facts((), (flavor("theirs", "false", is_public=False), flavor("all", "false"), flavor("theirs-on", "true", is_public=False)))
    found = tenant_report(report((instance(),)), cloud, PROJECT)
    assert (found.flavors_off, found.flavors_on) == (("all",), ())


def test_flavors_that_could_not_be_seen_are_not_offered() -> None:
    cloud = facts((), hypervisors=facts().hypervisors).model_copy(
        update={"flavors": facts().flavors.model_copy(update={"value": None, "reason": "403"})}
    )
    assert tenant_report(report((instance(),)), cloud, PROJECT).flavors_off == ()
