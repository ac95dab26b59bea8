"""Whatever an API sends becomes a record or a reason, and what was not shown is never taken for silence."""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.facts.openstack.blind_spots import blind_spots
from exitguard.facts.openstack.connection import cloud_id
from exitguard.facts.openstack.errors import UnseenError
from exitguard.facts.openstack.pages import read_pages
from exitguard.facts.openstack.parse import (
    forbidden_policy,
    load_json,
    parse_aggregate,
    parse_flavor,
    parse_hypervisor,
    parse_image,
    parse_server,
    parse_service,
)
from exitguard.model.canonical import record_hash
from exitguard.model.cloud import Flavor
from exitguard.model.record import Record

PARSERS: tuple[Callable[[Mapping[str, Any]], Record], ...] = (
    parse_aggregate,
    parse_flavor,
    parse_hypervisor,
    parse_image,
    parse_server,
    parse_service,
)
WHOLE: dict[str, Any] = {
    "id": "1",
    "name": "n",
    "tenant_id": "p",
    "status": "ACTIVE",
    "state": "up",
    "host": "h",
    "hosts": ["h"],
    "visibility": "public",
    "hypervisor_hostname": "h",
    "hypervisor_type": "QEMU",
    "service": {"id": 1, "host": "h"},
    "servers": [{"uuid": "u"}],
    "flavor": {"original_name": "small", "extra_specs": {"hw:pmu": "false"}},
    "image": {"id": "i", "properties": {"hw_pmu": "false"}},
    "extra_specs": {"hw:pmu": "false"},
    "hw_pmu": "false",
    "os-flavor-access:is_public": True,
    "locked": False,
    "zone": "nova",
    "created": "2026-11-23T07:16:04Z",
    "OS-EXT-STS:task_state": None,
    "OS-EXT-AZ:availability_zone": "nova",
    "OS-EXT-SRV-ATTR:host": "h",
    "disabled_reason": None,
}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*WHOLE, "uuid", "hw:pmu", "x"]), inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.parametrize("parse", PARSERS, ids=lambda parse: parse.__name__)
def test_item_as_it_should_be_is_a_record(parse: Callable[[Mapping[str, Any]], Record]) -> None:
    assert parse(WHOLE)


@given(
    parse=st.sampled_from(PARSERS),
    changes=st.dictionaries(st.sampled_from(list(WHOLE)), json_values, max_size=4),
    gone=st.sets(st.sampled_from(list(WHOLE)), max_size=3),
)
def test_item_with_anything_in_it_is_a_record_that_can_be_written_or_a_reason(
    parse: Callable[[Mapping[str, Any]], Record], changes: dict[str, Any], gone: set[str]
) -> None:
    item = {name: value for name, value in (WHOLE | changes).items() if name not in gone}
    with suppress(UnseenError):
        record_hash(parse(item).model_dump(mode="json"))


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_answer_of_any_bytes_is_an_object_or_a_reason(body: bytes) -> None:
    with suppress(UnseenError):
        assert isinstance(load_json(body, "/servers/detail"), dict)


@given(specs=st.none() | st.dictionaries(st.sampled_from(["hw:pmu", "hw:cpu_policy"]), st.text(min_size=1, alphabet="truefalsTF01 ")))
def test_flavor_s_text_is_kept_and_none_means_not_shown(specs: dict[str, str] | None) -> None:
    item = {name: value for name, value in WHOLE.items() if name != "extra_specs"} | ({} if specs is None else {"extra_specs": specs})
    assert parse_flavor(item).hw_pmu == (None if specs is None else specs.get("hw:pmu", ""))


class Pages:
    """A listing of ids in pages that may overlap, as it looks while servers move between its pages."""

    def __init__(self, pages: list[list[int]]) -> None:
        self.pages = pages
        self.asked: list[str | None] = []

    def get(self, path: str, parameters: Mapping[str, str], *, microversion: str | None = None) -> dict[str, Any]:
        del path, microversion
        self.asked.append(parameters.get("marker"))
        number = len(self.asked) - 1
        links = [{"rel": "next", "href": "x"}] if number + 1 < len(self.pages) else []
        return {
            "aggregates": [{"id": item, "name": f"{item}", "hosts": [f"page-{number}"]} for item in self.pages[number]],
            "aggregates_links": links,
        }


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True), min_size=1, max_size=5))
def test_listing_in_pages_has_each_item_once_or_is_none(pages: list[list[int]]) -> None:
    reader = Pages(pages)
    fresh = [set(page) - {item for before in pages[:number] for item in before} for number, page in enumerate(pages)]
    if not all(fresh[:-1]):
        with pytest.raises(UnseenError, match="goes in circles"):
            read_pages(reader, "/os-aggregates", "aggregates", parse_aggregate, parameters={})
        return
    found = read_pages(reader, "/os-aggregates", "aggregates", parse_aggregate, parameters={})
    assert sorted(each.name for each in found) == sorted({str(item) for page in pages for item in page})
    assert reader.asked == [None, *(str(page[-1]) for page in pages[:-1])]
    for each in found:  # as it was seen last
        assert each.hosts == (f"page-{max(number for number, page in enumerate(pages) if int(each.name) in page)}",)


@pytest.mark.parametrize(
    ("body", "policy"),
    [
        (
            b'{"forbidden": {"message": "Policy doesn\'t allow os_compute_api:os-services:list to be performed."}}',
            "os_compute_api:os-services:list",
        ),
        (b"<html>You are not authorized to complete get_images action.</html>", None),
        (b"Policy doesn't allow " + b"x" * 10_000 + b" to be performed", None),
        (b"", None),
    ],
)
def test_policy_that_refused_is_named_where_the_answer_names_it(body: bytes, policy: str | None) -> None:
    assert forbidden_policy(body) == (None if policy is None else f"the policy {policy}")


@pytest.mark.parametrize("project", ["p" * 32, None])
@pytest.mark.parametrize("end", ["", "/"])
def test_cloud_has_one_id_whoever_asks_and_however_its_catalogue_ends(project: str | None, end: str) -> None:
    plain = cloud_id("https://nova.example/v2.1", "other")
    assert cloud_id("https://nova.example/v2.1" + (f"/{project}" if project else "") + end, project) == plain
    assert cloud_id("https://nova.example/v2.1/other", project) != plain


def flavor(hw_pmu: str | None) -> Flavor:
    return Flavor(id="1", name="small", hw_pmu=hw_pmu, is_public=True)


def test_extra_specs_that_are_not_shown_are_told_with_what_would_show_them() -> None:
    (old,) = blind_spots((2, 60), "cloud", [flavor(None), flavor("")], [])
    assert old == "the extra specs of 1 of 2 flavors are not shown: that takes microversion 2.61, and this Nova was asked in 2.60"
    (refused,) = blind_spots((2, 61), "cloud", [flavor(None)], [])
    assert "policy os_compute_api:os-flavor-extra-specs:index" in refused


def test_silent_flavor_is_no_blind_spot() -> None:
    assert list(blind_spots((2, 61), "cloud", [flavor("")], [])) == []
