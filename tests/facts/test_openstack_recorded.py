"""What a real Nova 26.2.2 and Glance 25.1 answered to an administrator, a member and a reader, and in older microversions."""

from collections.abc import Iterator

import pytest
from fake_openstack import Answer, FakeOpenStack
from openstack_clouds import LISTINGS, facts, play, recording, seen_listings, whole_cloud

from exitguard.model.cloud import Server

ADMINISTRATOR = "administrator-2.92"
WHOLE = ("flavors", "images", "servers-of-all-projects", "services", "hypervisors", "aggregates")
PAGES = (
    *(f"flavors-page-{number}" for number in range(1, 5)),
    *(f"images-page-{number}" for number in range(1, 5)),
    *(f"servers-page-{number}" for number in range(1, 7)),
    *(f"hypervisors-page-{number}" for number in range(1, 4)),
    "services",
    "aggregates",
)


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOpenStack]:
    with whole_cloud(monkeypatch) as running:
        running.answers.clear()
        running.max_microversion = "2.92"
        yield running


def by_name(servers: tuple[Server, ...]) -> dict[str, Server]:
    return {server.name: server for server in servers}


def test_administrator_sees_everything(cloud: FakeOpenStack) -> None:
    play(cloud, ADMINISTRATOR, *WHOLE)
    found = facts()
    assert seen_listings(found) == set(LISTINGS)
    assert (found.scope, found.notices) == ("cloud", ())
    assert {flavor.name: flavor.hw_pmu for flavor in found.flavors.get() if flavor.name.startswith("a-")} == {
        "a-silent": "",
        "a-off": "false",
        "a-on": "true",
        "a-huge": "",
    }
    servers = by_name(found.servers.get())
    assert len(servers) == 17
    assert all(server.domain_name for server in servers.values())
    known = {uuid for hypervisor in found.hypervisors.get() for uuid in hypervisor.servers}
    assert known == {server.uuid for server in servers.values() if server.host}


def test_listing_in_pages_is_the_listing_as_a_whole(cloud: FakeOpenStack) -> None:
    play(cloud, ADMINISTRATOR, *WHOLE)
    whole = facts()
    play(cloud, ADMINISTRATOR, *PAGES)
    paged = facts()
    assert len(cloud.asked(LISTINGS["servers"])) == 1 + 6
    assert paged.hash == whole.hash


@pytest.mark.parametrize("role", ["member", "reader"])
def test_who_is_no_administrator_sees_one_project_and_which_policies_would_show_more(cloud: FakeOpenStack, role: str) -> None:
    play(cloud, f"{role}-2.92", *WHOLE, "servers")
    found = facts()
    assert found.scope == "project"
    assert seen_listings(found) == {"flavors", "images", "servers"}
    assert {name: getattr(found, name).unlock for name in ("services", "hypervisors", "aggregates")} == {
        "services": "the policy os_compute_api:os-services:list",
        "hypervisors": "the policy os_compute_api:os-hypervisors:list-detail",
        "aggregates": "the policy os_compute_api:os-aggregates:index",
    }
    assert len(found.servers.get()) == 12
    assert {(server.host, server.hypervisor_hostname, server.domain_name) for server in found.servers.get()} == {(None, None, None)}
    assert all(server.flavor_hw_pmu is not None for server in found.servers.get())
    project, hosts = found.notices
    assert "os_compute_api:servers:detail:get_all_tenants" in project
    assert "os_compute_api:os-extended-server-attributes" in hosts


@pytest.mark.parametrize(
    ("microversion", "flavors_shown", "servers_shown", "hypervisors_shown"),
    [
        ("2.1", False, False, False),
        ("2.46", False, False, False),
        ("2.47", False, True, False),
        ("2.52", False, True, False),
        ("2.60", False, True, True),
        ("2.61", True, True, True),
    ],
)
def test_older_nova_shows_less_and_that_is_told(
    cloud: FakeOpenStack,
    microversion: str,
    flavors_shown: bool,  # noqa: FBT001 - a column of the table above
    servers_shown: bool,  # noqa: FBT001
    hypervisors_shown: bool,  # noqa: FBT001
) -> None:
    play(cloud, ADMINISTRATOR, *WHOLE)
    play(cloud, f"administrator-{microversion}", "flavors", "hypervisors", "services")
    servers = recording(f"administrator-{microversion}", "servers")["answer"]["body"]["servers"]  # the first page alone was recorded
    cloud.answers[LISTINGS["servers"]] = {"servers": servers}
    cloud.max_microversion = microversion
    found = facts()
    assert (found.cloud.microversion, found.cloud.microversion_offered) == (microversion, microversion)
    assert seen_listings(found) == set(LISTINGS) - (set() if hypervisors_shown else {"hypervisors"})
    assert {flavor.hw_pmu is not None for flavor in found.flavors.get()} == {flavors_shown}
    assert {server.flavor_hw_pmu is not None for server in found.servers.get()} == {servers_shown}
    assert any("takes microversion 2.61" in notice for notice in found.notices) is not flavors_shown
    assert any("takes microversion 2.47" in notice for notice in found.notices) is not servers_shown


def test_token_that_nova_no_longer_takes_is_asked_for_anew(cloud: FakeOpenStack) -> None:
    play(cloud, ADMINISTRATOR, *WHOLE)
    refused = recording("faults", "token-no-longer-valid")["answer"]
    cloud.answers[LISTINGS["aggregates"]] = [Answer(refused["body"], refused["status"]), cloud.answers[LISTINGS["aggregates"]]]
    assert facts().aggregates.known
    cloud.answers[LISTINGS["aggregates"]] = Answer(refused["body"], refused["status"])
    assert "401" in (facts().aggregates.reason or "")


def test_marker_that_nova_no_longer_knows_is_no_end_of_a_listing(cloud: FakeOpenStack) -> None:
    play(cloud, ADMINISTRATOR, *PAGES)
    refused = recording("faults", "marker-unknown")["answer"]
    pages = cloud.answers[LISTINGS["servers"]]
    assert callable(pages)
    first = recording(ADMINISTRATOR, "servers-page-1")["answer"]["body"]["servers"]
    gone, before = first[-1]["id"], first[-2]["id"]

    def page(path: str, query: dict[str, list[str]]) -> object:
        marker = query.get("marker", [None])[0]
        if marker == gone:
            return Answer(refused["body"], refused["status"])
        return pages(path, query | ({"marker": [gone]} if marker == before else {}))

    cloud.answers[LISTINGS["servers"]] = page
    assert len(facts().servers.get()) == 17


def test_nova_31_shows_stored_image_properties_and_an_empty_word_is_no_silence(cloud: FakeOpenStack) -> None:
    cloud.max_microversion = "2.100"
    play(cloud, "nova-31-administrator-2.98", *WHOLE)
    servers = by_name(facts().servers.get())
    assert {name: (server.flavor_hw_pmu, server.image_hw_pmu) for name, server in servers.items()} == {
        "h-both-silent": ("", ""),
        "h-both-off": ("false", "false"),
        "h-both-on": ("true", "true"),
        "h-flavor-off": ("false", ""),
        "h-flavor-on": ("true", ""),
        "h-flavor-empty": ("empty", ""),
        "h-image-off": ("", "false"),
        "h-image-on": ("", "true"),
        "h-stored-empty": ("", "empty"),
        "h-remedied": ("", "false"),
        "h-edited": ("", ""),
        "h-trap": ("true", "false"),
        "h-locked": ("", ""),
        "h-error": ("", ""),
    }
