"""A cloud that is slow, busy, hostile or half down costs bounded time and memory, and is told as what it is."""

import gzip
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from fake_openstack import Answer, FakeOpenStack, Query
from openstack_clouds import LISTINGS, QUICK, facts, seen_listings, server, whole_cloud

from exitguard.facts.openstack import CloudError

COMPUTE = set(LISTINGS) - {"images"}


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOpenStack]:
    with whole_cloud(monkeypatch) as running:
        yield running


@pytest.fixture
def never() -> Iterator[threading.Event]:
    """What no answer comes before."""
    event = threading.Event()
    yield event
    event.set()


def test_answer_that_comes_a_byte_at_a_time_is_not_waited_for(cloud: FakeOpenStack) -> None:
    cloud.answers[LISTINGS["images"]] = Answer({"images": [], "filler": "x" * 10_000}, drip=(1, 0.1))  # would take a quarter of an hour
    found = facts(replace(QUICK, timeout_seconds=2.0))
    assert seen_listings(found) >= COMPUTE
    assert "no whole answer within 2 seconds" in (found.images.reason or "")


def test_service_that_leaves_two_questions_unanswered_is_asked_no_more(cloud: FakeOpenStack, never: threading.Event) -> None:
    for name in COMPUTE:
        cloud.answers[LISTINGS[name]] = Answer({}, after=never)
    found = facts(replace(QUICK, timeout_seconds=2.0))
    assert seen_listings(found) == {"images"}
    assert sum(len(cloud.asked(LISTINGS[name])) for name in COMPUTE) == 2
    assert "not asked" in (found.aggregates.reason or "")


def test_whole_look_has_an_end(cloud: FakeOpenStack, never: threading.Event) -> None:
    cloud.answers[LISTINGS["services"]] = Answer({}, after=never)
    found = facts(replace(QUICK, limit_seconds=4.0))
    assert seen_listings(found) == set()
    assert "the whole look has already taken 4 seconds" in (found.images.reason or "")


def test_keystone_that_never_answers_is_told(cloud: FakeOpenStack, never: threading.Event) -> None:
    cloud.answers["/identity/v3/auth/tokens"] = Answer({}, after=never)
    with pytest.raises(CloudError, match=r"timed out|within"):
        facts(replace(QUICK, timeout_seconds=2.0))


def test_service_that_asks_to_be_left_alone_for_long_is_not_waited_for(cloud: FakeOpenStack) -> None:
    cloud.answers[LISTINGS["flavors"]] = Answer({}, 429, {"Retry-After": "86400"})
    assert "to be asked again in 86400 seconds, which is too long to wait" in (facts().flavors.reason or "")
    assert len(cloud.asked(LISTINGS["flavors"])) == 1


def test_service_that_asks_for_no_pause_gets_none(cloud: FakeOpenStack) -> None:
    cloud.answers[LISTINGS["flavors"]] = [Answer({}, 503, {"Retry-After": "0"})] * 3 + [{"flavors": []}]
    assert facts(replace(QUICK, retry_pause_seconds=1000.0)).flavors.value == ()


def test_broken_off_answer_is_asked_for_again(cloud: FakeOpenStack) -> None:
    cloud.answers[LISTINGS["servers"]] = [Answer({"servers": []}, cut=5), {"servers": [server(1)]}]
    assert len(facts().servers.get()) == 1


def test_service_that_is_not_there_is_told_in_the_system_s_words(cloud: FakeOpenStack) -> None:
    cloud.endpoints["image"] = "http://127.0.0.1:1"
    found = facts()
    assert seen_listings(found) == COMPUTE
    assert "connection refused, 4 times in a row" in (found.images.reason or "")


def test_catalogue_without_images_is_told(cloud: FakeOpenStack) -> None:
    del cloud.endpoints["image"]
    found = facts()
    assert seen_listings(found) == COMPUTE
    assert "image service" in (found.images.reason or "")


def test_packed_answer_is_not_unfolded(cloud: FakeOpenStack) -> None:
    cloud.answers[LISTINGS["images"]] = Answer(gzip.compress(b'{"images": []}'), headers={"Content-Encoding": "gzip"})
    assert "no JSON" in (facts().images.reason or "")


def test_answer_of_more_bytes_than_any_is_no_answer(cloud: FakeOpenStack) -> None:
    cloud.answers[LISTINGS["images"]] = b'{"images": []}' + b" " * (64 * 1024 * 1024)
    assert "expected an answer of at most 67108864 bytes" in (facts().images.reason or "")


def test_answer_of_more_values_than_any_is_not_unfolded(cloud: FakeOpenStack) -> None:
    cloud.answers[LISTINGS["images"]] = b'{"images": [' + b"[]," * 2_000_001 + b"[]]}"
    assert "expected at most 4000000 values" in (facts().images.reason or "")


def test_servers_too_large_for_one_answer_come_in_smaller_pages(cloud: FakeOpenStack) -> None:
    def page(_path: str, query: Query) -> Any:
        if "limit" not in query:
            return b" " * (64 * 1024 * 1024 + 1)
        return {"servers": [server(1)]}

    cloud.answers[LISTINGS["servers"]] = page
    assert len(facts().servers.get()) == 1


def test_deleted_marker_is_no_end_of_the_listing(cloud: FakeOpenStack) -> None:
    gone = {server(3)["id"], server(2)["id"]}

    def page(_path: str, query: Query) -> Any:
        (marker,) = query.get("marker", [None])
        if marker in gone:
            return Answer({"badRequest": {"code": 400, "message": f"marker [{marker}] not found"}}, 400)
        if marker is None:
            return {"servers": [server(1), server(2), server(3)], "servers_links": [{"rel": "next", "href": "x"}]}
        return {"servers": [server(4)]}

    cloud.answers[LISTINGS["servers"]] = page
    assert [each.name for each in facts().servers.get()] == ["vm-1", "vm-2", "vm-3", "vm-4"]
    gone.add(server(1)["id"])
    assert "deleted meanwhile" in (facts().servers.reason or "")


def test_servers_of_a_cell_that_is_down_make_the_listing_a_part_and_so_none(cloud: FakeOpenStack) -> None:
    told = {"id": server(2)["id"], "status": "UNKNOWN", "tenant_id": "p", "created": "2026-11-23T07:16:04Z", "links": []}
    cloud.answers[LISTINGS["servers"]] = {"servers": [told, server(1)]}
    found = facts()
    assert "cannot reach the cell" in (found.servers.reason or "")
    assert seen_listings(found) == set(LISTINGS) - {"servers"}
    # With a limit Nova leaves such servers out in silence.
    assert cloud.asked(LISTINGS["servers"]) == [f"{LISTINGS['servers']}?all_tenants=1"]


def test_compute_of_a_cell_that_is_down_makes_servers_and_hypervisors_a_part_and_so_none(cloud: FakeOpenStack) -> None:
    up = {"id": "s", "binary": "nova-compute", "host": "compute-a", "zone": "nova", "status": "enabled", "state": "up"}
    down = [{"binary": "nova-compute", "host": f"compute-{name}", "status": "UNKNOWN"} for name in "bcdef"]
    cloud.answers[LISTINGS["services"]] = {"services": [*down, up]}
    found = facts()
    assert {service.host: service.state for service in found.services.get()} == {"compute-a": "up"} | dict.fromkeys(
        (each["host"] for each in down), "unknown"
    )
    assert "the cell of compute-b, compute-c, compute-d and 2 more" in (found.servers.reason or "")
    assert seen_listings(found) == set(LISTINGS) - {"servers", "hypervisors"}


def test_listing_of_hypervisors_has_nova_ask_no_host(cloud: FakeOpenStack) -> None:
    facts()
    assert cloud.spoken[LISTINGS["hypervisors"]] == {"2.87"}  # 2.88 asks each for its uptime
    assert cloud.spoken[LISTINGS["servers"]] == {"2.93"}


def test_hidden_and_community_images_are_images(cloud: FakeOpenStack) -> None:
    def page(_path: str, query: Query) -> Any:
        hidden = query.get("os_hidden") == ["true"]
        image = {"id": "old" if hidden else "new", "name": "Debian", "visibility": "community", "hw_pmu": "false"}
        return {"images": [image] if query["visibility"] == ["all"] else []}

    cloud.answers[LISTINGS["images"]] = page
    assert [(image.id, image.hw_pmu) for image in facts().images.get()] == [("new", "false"), ("old", "false")]


def test_project_at_the_end_of_the_endpoint_is_no_part_of_the_cloud_s_id(cloud: FakeOpenStack) -> None:
    plain = facts().cloud.id
    for name in COMPUTE:
        path = LISTINGS[name]
        cloud.answers[path.replace("/v2.1", f"/v2.1/{'a' * 32}")] = cloud.answers[path]
    cloud.endpoints["compute"] = f"/v2.1/{'a' * 32}/"
    found = facts()
    assert found.cloud.id == plain
    assert seen_listings(found) == set(LISTINGS)


def test_compute_api_that_tells_no_versions_is_told(cloud: FakeOpenStack) -> None:
    cloud.endpoints["compute"] = "/broken"
    with pytest.raises(CloudError, match="/broken"):
        facts()


@pytest.mark.parametrize("text", ["clouds: [", "clouds: {here: 3}", "clouds: {here: {auth_type: nosuch, auth: {}}}", "\x00", "- 1"])
def test_clouds_yaml_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Any, text: str) -> None:
    path = tmp_path / "clouds.yaml"
    path.write_text(text)
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(path))
    with pytest.raises(CloudError, match=r"^here: .*Expected an entry of clouds\.yaml"):
        facts(replace(QUICK, cloud="here"))


def test_half_of_a_character_in_a_name_leaves_the_facts_writable(cloud: FakeOpenStack) -> None:
    cloud.answers[LISTINGS["servers"]] = json.dumps({"servers": [server(1, name="vm-\ud800")]}).encode()
    found = facts()
    assert found.servers.get()[0].name == "vm-?"
    assert found.hash.startswith("sha256:")
