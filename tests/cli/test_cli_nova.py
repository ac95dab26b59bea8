"""`exitguard nova`: a cloud's facts from a file, joined with the facts of real file trees of hosts."""

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from exitguard.model.cloud import Canary, CloudFacts
from exitguard.model.instance import CloudReport
from exitguard.report.json_document import json_text
from exitguard.schemas import schema

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))  # for cloud_samples.py
import cloud_samples as samples

Run = Callable[..., subprocess.CompletedProcess[str]]
#: Code, standard output and standard error, as the fixture gives them.
Nova = Callable[..., Any]

_INSTANCE = "6695eb01-f6a4-4304-89aa-97f2502e193f"
_OTHERS = "11111111-f6a4-4304-89aa-97f2502e193f"
_DOMAIN = f"""<domain type='kvm'><name>instance-00000001</name><uuid>{_INSTANCE}</uuid><memory>65536</memory>
<metadata><nova:instance xmlns:nova="http://openstack.org/xmlns/libvirt/nova/1.1"><nova:package version="26.2.2"/>
<nova:name>web-1</nova:name><nova:creationTime>2026-11-01 09:00:00</nova:creationTime>
<nova:flavor name="m1.small"><nova:memory>64</nova:memory></nova:flavor>
<nova:owner><nova:user uuid="u">demo</nova:user><nova:project uuid="{samples.PROJECT}">demo</nova:project></nova:owner>
<nova:root type="image" uuid="00000000-0000-4000-9000-000000000001"/></nova:instance></metadata>
<os><type arch='x86_64' machine='pc'>hvm</type></os><cpu mode='host-passthrough'/></domain>"""


def instances(flavor_hw_pmu: str = "") -> tuple[samples.InstanceReport, ...]:
    one = {"host": "compute-17", "flavor_hw_pmu": flavor_hw_pmu, "image_hw_pmu": ""}
    mine = samples.instance("web-1", uuid=_INSTANCE, status="SHUTOFF", **one)
    return mine, samples.instance("db-of-others", uuid=_OTHERS, project="another-project", **one)


def cloud_facts(flavor_hw_pmu: str = "") -> CloudFacts:
    found = samples.facts(instances(flavor_hw_pmu), (samples.flavor("m1.small", flavor_hw_pmu),))
    service = found.services.get()[0].model_copy(update={"host": "compute-17"})
    hypervisor = found.hypervisors.get()[0].model_copy(update={"host": "compute-17", "hostname": "compute-17"})
    image = found.images.get()[0].model_copy(update={"hw_pmu": flavor_hw_pmu, "updated_at": "2026-01-01T00:00:00Z"})
    canary = Canary(cloud=samples.CLOUD_ID, host="compute-17", version="26.2.2", element="absent", observed_at=samples.MOMENT)
    seen = {"services": (service,), "hypervisors": (hypervisor,), "images": (image,)}
    shown = {name: getattr(found, name).model_copy(update={"value": value}) for name, value in seen.items()}
    return found.model_copy(update={**shown, "canaries": (canary,)})


@pytest.fixture
def silent_cloud(tmp_path: Path) -> Path:
    """The facts of a cloud whose flavor and image say nothing: exit code 2 or 3."""
    return _written(tmp_path / "silent.json", cloud_facts())


@pytest.fixture
def cloud_with_pmu_off(tmp_path: Path) -> Path:
    """The facts of a cloud whose flavor and image, and all copies of them, say that the PMU is off: exit code 0."""
    return _written(tmp_path / "off.json", cloud_facts("false"))


def _written(path: Path, facts: CloudFacts) -> Path:
    path.write_text(json_text(facts))
    return path


def _observed(nova: Nova, tree: Path, domain: str, directory: Path) -> Path:
    """The facts of a host that has this one domain, by `exitguard facts`."""
    (tree / "etc/libvirt/qemu/web-1.xml").unlink()
    (tree / "etc/libvirt/qemu/instance-00000001.xml").write_text(domain)
    others = domain.replace(_INSTANCE, _OTHERS).replace("instance-00000001", "instance-00000002")
    (tree / "etc/libvirt/qemu/instance-00000002.xml").write_text(others)
    directory.mkdir()
    made = nova("--sysroot", tree, "--format", "json", "--output", directory / "compute-17.json", verb="facts")
    assert made.returncode == 0, made.stderr
    return directory


@pytest.fixture
def hosts(nova: Nova, failing_host: Path, tmp_path: Path) -> Path:
    """A directory with the facts of compute-17, on which web-1 is defined without a <pmu> element."""
    return _observed(nova, failing_host, _DOMAIN, tmp_path / "hosts")


@pytest.fixture
def hosts_with_pmu_off(nova: Nova, failing_host: Path, tmp_path: Path) -> Path:
    """The same, as Nova writes it where its flavor says that the PMU is off."""
    return _observed(nova, failing_host, _DOMAIN.replace("</os>", "</os><features><pmu state='off'/></features>"), tmp_path / "hosts")


def audited(nova: Nova, *arguments: str | Path) -> CloudReport:
    result = nova("audit", "--format", "json", *arguments)
    document = json.loads(result.stdout)
    Draft202012Validator(schema("cloud-report")).validate(document)
    assert document["summary"]["exit_code"] == result.returncode
    return CloudReport.model_validate_json(result.stdout)


def test_audit_joins_a_host_and_tells_what_is_defined_there(nova: Nova, silent_cloud: Path, hosts: Path) -> None:
    report = audited(nova, "--cloud-facts", silent_cloud, hosts)
    (mine,) = [instance for instance in report.instances if instance.uuid == _INSTANCE]
    assert report.hosts_joined == 1
    assert mine.persistent == "default_on"
    assert mine.host_id is not None
    assert mine.build == "26.2.2"


def test_audit_without_facts_of_hosts_works_and_says_what_is_unknown(nova: Nova, silent_cloud: Path) -> None:
    report = audited(nova, "--cloud-facts", silent_cloud)
    assert {instance.persistent for instance in report.instances} == {"unknown"}
    result = nova("audit", "--cloud-facts", silent_cloud)
    assert "No facts of its 1 compute host were given" in result.stdout
    assert result.returncode in {2, 3}


def test_cloud_in_which_all_says_off_is_0(nova: Nova, cloud_with_pmu_off: Path, hosts_with_pmu_off: Path) -> None:
    result = nova("audit", "--cloud-facts", cloud_with_pmu_off, hosts_with_pmu_off)
    assert (result.returncode, result.stdout.split("\n")[0][:9]) == (0, "COMPLIANT"), result.stdout


def test_cloud_with_a_silent_flavor_is_2_and_leads_to_a_plan(nova: Nova, silent_cloud: Path, hosts: Path) -> None:
    result = nova("audit", "--cloud-facts", silent_cloud, hosts)
    assert result.returncode == 2, result.stdout
    assert result.stdout.startswith("NOT COMPLIANT  production")
    assert "exitguard plan --cloud production" in result.stdout
    assert max(len(line) for line in result.stdout.split("\n")) <= 80


def test_cloud_of_which_a_part_was_not_seen_is_3_with_the_policys_name(nova: Nova, tmp_path: Path, hosts_with_pmu_off: Path) -> None:
    hidden = _written(tmp_path / "hidden.json", cloud_facts("false").model_copy(update={"hypervisors": samples.forbidden()}))
    result = nova("audit", "--cloud-facts", hidden, hosts_with_pmu_off)
    assert result.returncode == 3, result.stdout
    assert "os_compute_api:os-hypervisors:list-detail" in " ".join(result.stdout.split())


def test_waiver_answers_for_an_instance(nova: Nova, silent_cloud: Path, hosts: Path, tmp_path: Path) -> None:
    waivers = tmp_path / "waivers.yaml"
    waivers.write_text(
        f"kind: waivers\nschema_version: 1\nwaivers:\n- id: CHG-1\n  rules: [NOVA-INSTANCE-PMU]\n  scope: {{domains: [{_INSTANCE}]}}\n"
        "  justification: its owner profiles with it\n  approver: ops\n  created: 2026-01-01T00:00:00Z\n  expires: 2099-01-01T00:00:00Z\n"
    )
    report = audited(nova, "--cloud-facts", silent_cloud, "--waivers", waivers, hosts)
    verdicts = {finding.subject.id: finding.verdict for finding in report.findings if finding.rule == "NOVA-INSTANCE-PMU"}
    assert verdicts[_INSTANCE] == "waived"


def test_command_as_users_run_it_gives_the_same(exitguard: Run, nova: Nova, silent_cloud: Path, hosts: Path) -> None:
    result = exitguard("nova", "audit", "--cloud-facts", silent_cloud, hosts)
    assert (result.returncode, result.stdout, result.stderr) == nova("audit", "--cloud-facts", silent_cloud, hosts)


def test_output_file_holds_the_whole_and_standard_output_nothing(nova: Nova, silent_cloud: Path, tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    result = nova("audit", "--cloud-facts", silent_cloud, "--format", "json", "--output", target)
    assert result.stdout == ""
    assert len(CloudReport.model_validate_json(target.read_text()).instances) == 2


def test_csv_has_a_line_an_instance_and_markdown_a_verdict(nova: Nova, silent_cloud: Path) -> None:
    table = nova("audit", "--cloud-facts", silent_cloud, "--format", "csv")
    assert [row["name"] for row in csv.DictReader(io.StringIO(table.stdout))] == ["web-1", "db-of-others"]
    text = nova("audit", "--cloud-facts", silent_cloud, "--format", "markdown")
    assert text.stdout.startswith("## ")
    assert table.returncode == text.returncode


# What is not a cloud's facts


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "not the facts of a cloud"),
        ("{}", "not the facts of a cloud: observed_at"),
        ('{"servers": [', "not the facts of a cloud"),
        ("[]" * 100_000, "not the facts of a cloud"),
    ],
)
def test_file_that_is_no_cloud_is_refused_with_what_was_expected(nova: Nova, tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "cloud.json"
    path.write_text(content)
    result = nova("audit", "--cloud-facts", path)
    assert (result.returncode, result.stdout) == (1, "")
    assert sentence in result.stderr
    assert "exitguard nova facts --format json" in result.stderr


def test_file_that_is_too_large_is_not_read(nova: Nova, tmp_path: Path) -> None:
    path = tmp_path / "cloud.json"
    path.touch()
    os.truncate(path, 1024**3 + 1)  # all of it a hole
    result = nova("report", "--by", "zone", "--cloud-facts", path)
    assert result.returncode == 1
    assert "expected at most 1073741824 bytes, found more" in result.stderr


def test_file_that_is_not_there_is_named(nova: Nova, tmp_path: Path) -> None:
    result = nova("audit", "--cloud-facts", tmp_path / "none.json")
    assert result.returncode == 1
    assert f"{tmp_path / 'none.json'}: no such file or directory" in result.stderr


def test_facts_of_hosts_that_are_none_are_refused(nova: Nova, silent_cloud: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    nothing = nova("audit", "--cloud-facts", silent_cloud, empty)
    assert nothing.returncode == 1
    assert "holds no facts" in nothing.stderr
    wrong = nova("audit", "--cloud-facts", silent_cloud, silent_cloud)
    assert wrong.returncode == 1
    assert "not the facts of a host" in wrong.stderr


def test_policy_with_a_fault_is_told_before_anything_is_asked(nova: Nova, silent_cloud: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("kind: policy\n")
    result = nova("audit", "--cloud-facts", silent_cloud, "--policy", policy)
    assert result.returncode == 1
    assert str(policy) in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("audit", "--cloud", "x", "--cloud-facts", "y.json"),
        ("audit", "--cloud", ""),
        ("audit", "--format", "xml"),
        ("report",),
        ("report", "--by", "colour"),
        ("report", "--by", "zone", "--project", "p"),
        ("report", "--project", "p", "--format", "table"),
        ("facts", "--cloud-facts", "y.json"),
        ("frobnicate",),
    ],
)
def test_wrong_usage_is_64(nova: Nova, arguments: tuple[str, ...]) -> None:
    result = nova(*arguments)
    assert (result.returncode, result.stdout) == (64, ""), result.stderr


# Reports


@pytest.mark.parametrize("by", ["project", "flavor", "zone", "aggregate", "build", "host"])
def test_report_counts_by_anything_and_adds_up(nova: Nova, silent_cloud: Path, hosts: Path, by: str) -> None:
    result = nova("report", "--by", by, "--format", "json", "--cloud-facts", silent_cloud, hosts)
    document = json.loads(result.stdout)
    Draft202012Validator(schema("cloud-groups")).validate(document)
    assert document["by"] == by
    assert sum(group["instances"] for group in document["groups"]) == document["total"]["instances"] == 2
    assert result.returncode == nova("audit", "--cloud-facts", silent_cloud, hosts).returncode


def test_report_is_a_table_unless_asked_otherwise(nova: Nova, silent_cloud: Path) -> None:
    result = nova("report", "--by", "project", "--cloud-facts", silent_cloud)
    assert result.stdout.startswith("Instances of production by project")
    assert "another-project" in result.stdout


def test_page_for_a_tenant_names_their_instances_and_nobody_elses(nova: Nova, silent_cloud: Path, hosts: Path) -> None:
    for output_format in ("markdown", "csv", "json"):
        result = nova("report", "--project", samples.PROJECT, "--format", output_format, "--cloud-facts", silent_cloud, hosts)
        assert result.returncode == 0, result.stderr
        assert "web-1" in result.stdout
        for foreign in ("db-of-others", "another-project", "compute-17", _OTHERS, "production", "RegionOne"):
            assert foreign not in result.stdout, output_format


def test_page_for_a_tenant_is_markdown_unless_asked_otherwise(nova: Nova, silent_cloud: Path) -> None:
    result = nova("report", "--project", samples.PROJECT, "--cloud-facts", silent_cloud)
    assert result.stdout.startswith("# The virtual PMU of your instances\n")


def test_project_without_an_instance_is_a_usage_error_that_says_where_ids_are(nova: Nova, silent_cloud: Path) -> None:
    result = nova("report", "--project", "demo", "--cloud-facts", silent_cloud)
    assert (result.returncode, result.stdout) == (64, "")
    assert "exitguard nova report --by project" in result.stderr


def test_page_for_a_tenant_is_not_written_where_instances_could_not_be_seen(nova: Nova, tmp_path: Path) -> None:
    unseen = _written(tmp_path / "unseen.json", cloud_facts().model_copy(update={"servers": samples.forbidden("servers/detail")}))
    result = nova("report", "--project", samples.PROJECT, "--cloud-facts", unseen)
    assert (result.returncode, result.stdout) == (3, "")
    assert "could not be seen: 403" in result.stderr


# Words


@pytest.mark.parametrize(
    ("topic", "sentence"),
    [
        ("flavor", "own copy of its flavor"),
        ("cloud_default", "Only vendors' builds do that"),
        ("behind-nova", "somebody edited it on the host"),
        ("conflict", "the next start fails"),
        ("off next", "nothing is saved"),
        ("nova_image_default", "Sets hw_pmu=false on Glance images"),
    ],
)
def test_words_of_a_cloud_are_explained(nova: Nova, topic: str, sentence: str) -> None:
    result = nova(topic, verb="explain")
    assert result.returncode == 0, result.stderr
    assert sentence in " ".join(result.stdout.split())


def test_verbs_are_listed_with_what_they_do(nova: Nova) -> None:
    text = nova("--help").stdout
    assert all(verb in text for verb in ("facts", "audit", "report"))
    assert "Changes nothing" in text
