"""A cloud is read as a whole, with GET alone, and what cannot be seen is a reason for that listing only."""

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import pytest
from fake_openstack import Answer, FakeOpenStack, Query
from openstack_clouds import LISTINGS, NOW, QUICK, facts, seen_listings, server, whole_cloud

from exitguard.facts.openstack import CloudError, CloudRequest, read_cloud
from exitguard.model.cloud import RemediedInstance


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOpenStack]:
    with whole_cloud(monkeypatch) as running:
        yield running


def test_whole_cloud_is_seen_with_nothing_but_get(cloud: FakeOpenStack) -> None:
    found = facts()
    assert seen_listings(found) == set(LISTINGS)
    assert found.scope == "cloud"
    assert {(method, path) for method, path in cloud.log if method != "GET"} == {("POST", "/identity/v3/auth/tokens")}


def test_texts_are_kept_as_they_are_stored(cloud: FakeOpenStack) -> None:
    del cloud
    found = facts()
    assert found.flavors.get()[0].hw_pmu == "false"
    assert found.images.get()[0].hw_pmu == "true"
    (one,) = found.servers.get()
    assert (one.flavor, one.flavor_hw_pmu, one.image, one.image_hw_pmu) == ("small", "false", "debian", None)
    assert (one.host, one.hypervisor_hostname, one.locked) == ("compute-a", "compute-a.example", False)


@pytest.mark.parametrize(("specs", "expected"), [({}, ""), (None, None), ({"hw:cpu_policy": "shared"}, ""), ({"hw:pmu": "True"}, "True")])
def test_silent_and_not_shown_are_told_apart(cloud: FakeOpenStack, specs: dict[str, str] | None, expected: str | None) -> None:
    flavor = {"original_name": "small"} | ({} if specs is None else {"extra_specs": specs})
    cloud.answers[LISTINGS["servers"]] = {"servers": [server(1, flavor=flavor)]}
    assert facts().servers.get()[0].flavor_hw_pmu == expected


def test_stored_image_properties_are_read_where_nova_shows_them(cloud: FakeOpenStack) -> None:
    cloud.max_microversion = "2.100"
    stored = {"id": "debian", "properties": {"hw_pmu": "false", "hw_machine_type": "q35"}}
    cloud.answers[LISTINGS["servers"]] = {"servers": [server(1, image=stored), server(2, image={"id": "debian", "properties": {}})]}
    assert [each.image_hw_pmu for each in facts().servers.get()] == ["false", ""]


def test_server_of_a_volume_has_no_image(cloud: FakeOpenStack) -> None:
    cloud.answers[LISTINGS["servers"]] = {"servers": [server(1, image="")]}
    (one,) = facts().servers.get()
    assert (one.image, one.image_hw_pmu) == (None, None)


def test_cloud_id_is_the_compute_endpoint_s(cloud: FakeOpenStack) -> None:
    assert facts().cloud.id == str(uuid5(NAMESPACE_URL, f"{cloud.address}/v2.1"))


def test_pages_are_one_listing_in_which_each_server_is_once(cloud: FakeOpenStack) -> None:
    pages = {None: [1, 2], server(2)["id"]: [2, 3], server(3)["id"]: [4]}

    def page(_path: str, query: Query) -> dict[str, Any]:
        marker = query.get("marker", [None])[0]
        more = [{"rel": "next", "href": "http://elsewhere.example/steal-the-token"}] if marker != server(3)["id"] else []
        return {"servers": [server(number) for number in pages[marker]], "servers_links": more}

    cloud.answers[LISTINGS["servers"]] = page
    assert [each.name for each in facts().servers.get()] == ["vm-1", "vm-2", "vm-3", "vm-4"]
    assert len(cloud.asked(LISTINGS["servers"])) == 3


def test_listing_that_goes_in_circles_is_no_listing(cloud: FakeOpenStack) -> None:
    cloud.answers[LISTINGS["servers"]] = {"servers": [server(1)], "servers_links": [{"rel": "next", "href": "x"}]}
    found = facts()
    assert "goes in circles" in (found.servers.reason or "")
    assert seen_listings(found) == set(LISTINGS) - {"servers"}


@pytest.mark.parametrize(
    "answer",
    [
        Answer(b"<html>Bad Gateway</html>", 404),
        b"{",
        b"[" * 100_000,
        b"[]",
        {},
        dict.fromkeys(LISTINGS, "text"),
        {name: [None] for name in LISTINGS},
        {name: [{}] for name in LISTINGS},
        {name: [{"id": ["x"], "name": {"y": 1}}] for name in LISTINGS},
        Answer({name: [] for name in LISTINGS}, cut=5),
        Answer({}, 302, {"Location": "http://127.0.0.1:1/"}),
    ],
    ids=["404", "cut JSON", "deep", "list", "empty", "text", "null", "empty item", "wrong types", "broken off", "redirect"],
)
def test_half_broken_answer_is_a_reason_that_names_its_listing(cloud: FakeOpenStack, answer: Any) -> None:
    cloud.answers.update(dict.fromkeys(LISTINGS.values(), answer))
    found = facts()
    assert seen_listings(found) == set()
    for name, path in LISTINGS.items():
        assert path.split("/")[-1] in (getattr(found, name).reason or "")


@pytest.mark.parametrize("listing", LISTINGS)
def test_half_broken_answer_hides_nothing_else(cloud: FakeOpenStack, listing: str) -> None:
    cloud.answers[LISTINGS[listing]] = b"{"
    assert seen_listings(facts()) == set(LISTINGS) - {listing}


@pytest.mark.parametrize("listing", [name for name in LISTINGS if name != "servers"])
def test_what_a_role_may_not_see_names_the_policy(cloud: FakeOpenStack, listing: str) -> None:
    message = "Policy doesn't allow os_compute_api:os-something:list to be performed."
    cloud.answers[LISTINGS[listing]] = Answer({"forbidden": {"code": 403, "message": message}}, 403)
    observed = getattr(facts(), listing)
    assert "403" in observed.reason
    assert observed.unlock == "the policy os_compute_api:os-something:list"


def test_without_the_right_to_all_projects_the_own_one_is_read_and_told(cloud: FakeOpenStack) -> None:
    def page(_path: str, query: Query) -> Any:
        if "all_tenants" in query:
            return Answer({"forbidden": {"message": "Policy doesn't allow os_compute_api:servers:index:get_all_tenants"}}, 403)
        return {"servers": [server(1)]}

    cloud.answers[LISTINGS["servers"]] = page
    found = facts()
    assert found.scope == "project"
    assert len(found.servers.get()) == 1


def test_ended_token_is_asked_for_anew_once(cloud: FakeOpenStack) -> None:
    def page(_path: str, _query: Query) -> Any:
        cloud.expire_tokens()
        return {"servers": [server(1)]}

    cloud.answers[LISTINGS["servers"]] = page
    assert seen_listings(facts()) == set(LISTINGS)
    assert sum(method == "POST" for method, _ in cloud.log) == 2


def test_credentials_that_end_in_the_middle_hide_what_comes_after(cloud: FakeOpenStack) -> None:
    def page(_path: str, _query: Query) -> Any:
        cloud.expire_tokens()
        cloud.answers["/identity/v3/auth/tokens"] = Answer({"error": {"code": 401, "message": "no"}}, 401)
        return {"servers": [server(1)]}

    cloud.answers[LISTINGS["servers"]] = page
    found = facts()
    assert found.servers.known
    assert not found.hypervisors.known


def test_busy_api_is_asked_again(cloud: FakeOpenStack) -> None:
    busy = Answer({"overLimit": {}}, 429, {"Retry-After": "0"})
    cloud.answers[LISTINGS["servers"]] = [busy, Answer({}, 503, {"Retry-After": "0"}), {"servers": [server(1)]}]
    assert len(facts().servers.get()) == 1


def test_api_that_stays_broken_is_given_up(cloud: FakeOpenStack) -> None:
    cloud.answers[LISTINGS["aggregates"]] = Answer({}, 500, {"Retry-After": "0"})
    assert "found 500" in (facts().aggregates.reason or "")


def test_silent_api_costs_one_time_out(cloud: FakeOpenStack) -> None:
    never = threading.Event()
    cloud.answers[LISTINGS["images"]] = Answer({}, after=never)
    try:
        found = facts(replace(QUICK, timeout_seconds=2.0))
    finally:
        never.set()
    assert seen_listings(found) == set(LISTINGS) - {"images"}


def test_older_nova_than_needed_says_what_is_missing(cloud: FakeOpenStack) -> None:
    cloud.max_microversion = "2.25"
    assert "2.53" in (facts().hypervisors.reason or "")


def test_hostile_names_are_kept_and_bounded(cloud: FakeOpenStack) -> None:
    cloud.answers[LISTINGS["servers"]] = {"servers": [server(1, name="<b>\x1b[31m" + "x" * 100_000)]}
    (one,) = facts().servers.get()
    assert one.name.startswith("<b>\x1b[31m")
    assert len(one.name) <= 1024


def test_refused_credentials_name_the_cloud(cloud: FakeOpenStack) -> None:
    cloud.answers["/identity/v3/auth/tokens"] = Answer({"error": {"code": 401, "message": "The request requires authentication."}}, 401)
    with pytest.raises(CloudError, match="the OS_ variables") as told:
        facts()
    assert cloud.environment["OS_PASSWORD"] not in str(told.value)


def test_cloud_that_is_not_there_names_what_was_expected(monkeypatch: pytest.MonkeyPatch, cloud: FakeOpenStack) -> None:
    monkeypatch.setenv("OS_AUTH_URL", "http://127.0.0.1:1/v3")
    del cloud
    with pytest.raises(CloudError, match=r"127\.0\.0\.1:1/.*: connection refused\. Expected an entry of clouds\.yaml"):
        facts()


def test_unknown_name_in_clouds_yaml_is_told() -> None:
    with pytest.raises(CloudError, match="nowhere"):
        read_cloud(CloudRequest(cloud="nowhere"), NOW)


def record(running: FakeOpenStack, **other: Any) -> dict[str, Any]:
    known = uuid5(NAMESPACE_URL, f"{running.address}/v2.1")
    return {"cloud": str(known), "uuid": "u", "hw_pmu": "false", "set_at": "2026-11-23T08:00:00.000000Z", "image": "debian"} | other


def test_what_playbooks_noted_comes_with_it(cloud: FakeOpenStack, tmp_path: Path) -> None:
    directory = tmp_path / record(cloud)["cloud"] / "instances"
    directory.mkdir(parents=True)
    (directory / "u.json").write_text(json.dumps(record(cloud)))
    (directory / "other.json").write_text(json.dumps(record(cloud, cloud="another")))
    (directory / "cut.json").write_text("{")
    found = facts(replace(QUICK, record_dir=tmp_path))
    assert found.remedied == (RemediedInstance.model_validate_json(json.dumps(record(cloud))),)
    (notice,) = found.notices
    assert "cut.json" in notice


def test_cloud_without_notes_has_none(cloud: FakeOpenStack, tmp_path: Path) -> None:
    del cloud
    found = facts(replace(QUICK, record_dir=tmp_path))
    assert (found.remedied, found.canaries, found.notices) == ((), (), ())


def test_damaged_notes_are_told_and_not_without_end(cloud: FakeOpenStack, tmp_path: Path) -> None:
    directory = tmp_path / record(cloud)["cloud"] / "canaries"
    directory.mkdir(parents=True)
    for number in range(30):
        (directory / f"{number:02}.json").write_text("{}")
    os.mkfifo(directory / "pipe.json")
    Path(os.fsdecode(os.fsencode(directory / "00-") + b"\xff.json")).write_text("[]")
    found = facts(replace(QUICK, record_dir=tmp_path))
    assert len(found.notices) == 11
    assert "21 more files not read" in found.notices[-1]
    assert "00-\ufffd.json: not read" in found.notices[0]
    assert found.hash.startswith("sha256:")
