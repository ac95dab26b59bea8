"""`exitguard nova` against an API: recorded answers of a real Nova for the real SDK on the loopback, and clouds that do not answer."""

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from jsonschema import Draft202012Validator

from exitguard.schemas import schema

sys.path.insert(0, str(Path(__file__).parents[1] / "facts"))  # for fake_openstack.py
from fake_openstack import Answer, FakeOpenStack, fake_openstack

Run = Callable[..., subprocess.CompletedProcess[str]]
#: Code, standard output and standard error, as the fixture gives them.
Nova = Callable[..., Any]

_RECORDED = Path(__file__).parents[1] / "facts" / "openstack"


def recorded(role: str, cloud: FakeOpenStack) -> None:
    """What tests/facts/openstack has of this role, for the SDK to ask."""
    answers: dict[str, dict[str, Answer]] = {}
    for name in ("flavors", "images", "servers", "servers-of-all-projects", "services", "hypervisors", "aggregates"):
        path = _RECORDED / f"{role}-2.92" / f"{name}.json"
        if path.is_file():
            found = json.loads(path.read_text())
            where = urlsplit(found["request"]["path"])
            prefix = "/image" if found["request"]["service"] == "image" else ""
            key = "all" if "all_tenants" in where.query else "own"
            answers.setdefault(prefix + where.path, {})[key] = Answer(found["answer"]["body"], found["answer"]["status"])
    for place, by_query in answers.items():
        either = by_query.get("own") or by_query["all"]
        cloud.answers[place] = lambda _, query, by_query=by_query, either=either: by_query.get(
            "all" if "all_tenants" in query else "own", either
        )
    cloud.max_microversion = "2.92"


@pytest.fixture
def administrators_cloud(nova: Nova, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOpenStack]:
    """A cloud that answers the real SDK on the loopback; `nova` is there so that its OS_ variables are not taken away again."""
    del nova
    with fake_openstack() as cloud:
        for name, value in cloud.environment.items():
            monkeypatch.setenv(name, value)
        recorded("administrator", cloud)
        yield cloud


def test_facts_of_a_cloud_are_a_document_that_an_audit_takes(nova: Nova, administrators_cloud: FakeOpenStack, tmp_path: Path) -> None:
    path = tmp_path / "cloud.json"
    assert nova("facts", "--format", "json", "--output", path) == (0, "", "")
    document = json.loads(path.read_text())
    Draft202012Validator(schema("cloud-facts")).validate(document)
    assert len(document["servers"]["value"]) == 17
    asked = len(administrators_cloud.log)
    from_file = nova("audit", "--cloud-facts", path, "--format", "json")
    assert len(administrators_cloud.log) == asked
    assert json.loads(nova("audit", "--format", "json").stdout)["findings"] != []
    assert len(json.loads(from_file.stdout)["instances"]) == 17
    writes = [(method, where) for method, where in administrators_cloud.log if method != "GET"]
    assert set(writes) <= {("POST", "/identity/v3/auth/tokens")}


def test_facts_page_of_a_cloud_names_what_leaves_it_to_qemu(nova: Nova, administrators_cloud: FakeOpenStack) -> None:
    del administrators_cloud
    text = " ".join(nova("facts").stdout.split())
    assert "Servers 17" in text
    assert re.search(r"silent [0-9]+: [^:]*a-silent", text)


def test_what_a_member_may_not_see_is_told_with_the_policies_names(nova: Nova, administrators_cloud: FakeOpenStack) -> None:
    administrators_cloud.answers.clear()
    recorded("member", administrators_cloud)
    facts, audit = nova("facts"), nova("audit")
    assert facts.returncode == 0
    assert "its own project alone" in " ".join(facts.stdout.split())
    for text in (facts.stdout, audit.stdout):
        for policy in ("os-services:list", "os-hypervisors:list-detail", "os-aggregates:index"):
            assert f"os_compute_api:{policy}" in "".join(text.split())
    assert audit.returncode in {2, 3}


@pytest.mark.parametrize("project", ["27dc1d7c5d3543edbf9fd4a9e8577d3b", "0866a10d09354404826d276482231f32"])
def test_page_for_a_real_tenant_names_their_instances_alone(nova: Nova, administrators_cloud: FakeOpenStack, project: str) -> None:
    del administrators_cloud
    rows = list(csv.DictReader(io.StringIO(nova("audit", "--format", "csv").stdout)))
    mine = {row["uuid"] for row in rows if row["project"] == project}
    assert mine
    for output_format in ("markdown", "csv", "json"):
        text = nova("report", "--project", project, "--format", output_format).stdout
        assert all(uuid in text for uuid in mine)
        foreign = {row[key] for row in rows if row["project"] != project for key in ("uuid", "project")}
        assert not [word for word in (*foreign, "compute-a", "fake-b", *(row["host_id"] for row in rows)) if word and word in text]


# A cloud that cannot be asked


@pytest.mark.parametrize("verb", [("facts",), ("audit",), ("report", "--by", "host")])
def test_cloud_that_is_not_described_is_1_and_says_where_it_would_be(nova: Nova, verb: tuple[str, ...]) -> None:
    result = nova(*verb, "--cloud", "nowhere")
    assert (result.returncode, result.stdout) == (1, "")
    assert "nowhere" in result.stderr
    assert "clouds.yaml" in result.stderr


def test_cloud_where_nobody_listens_is_1_without_a_traceback(exitguard: Run) -> None:
    own = {"OS_AUTH_URL": "http://127.0.0.1:1/v3", "OS_USERNAME": "u", "OS_PASSWORD": "secret-word", "OS_PROJECT_NAME": "p"}
    result = exitguard("nova", "facts", env={**own, "OS_USER_DOMAIN_ID": "default", "OS_PROJECT_DOMAIN_ID": "default"})
    assert (result.returncode, result.stdout) == (1, "")
    assert "http://127.0.0.1:1" in result.stderr
    assert "Traceback" not in result.stderr
    assert "secret-word" not in result.stderr
