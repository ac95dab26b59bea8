"""Instances by project, flavor, zone, aggregate, build and host: the sums add up."""

import csv
import io
import re

import pytest
from cloud_samples import KINDS, compute, instance, one_of_each, report
from hypothesis import given
from hypothesis import strategies as st

from exitguard.model.instance import InstanceReport, PmuOrigin
from exitguard.model.pmu import PmuSetting
from exitguard.report.cloud_groups import CloudGroups, GroupBy, Standing, group_instances, standing
from exitguard.report.cloud_groups_page import groups_csv, groups_markdown, groups_page
from exitguard.report.page import Look, counted

LOOK = Look()
HOSTS = ("compute-1", "compute-2", "compute-3", None)
_TEXTS = st.sampled_from((None, "", "true", "false", "maybe", "On", " no "))
INSTANCES = st.lists(
    st.builds(
        lambda kind, origin, settings, wishes, names: instance(
            kind=kind,
            origin=origin,
            persistent=settings[0],
            live=settings[1],
            next_setting=settings[2],
            flavor_hw_pmu=wishes[0],
            image_hw_pmu=wishes[1],
            project=names[0],
            flavor=names[0],
            zone=names[1],
            build=names[1],
            host=names[2],
        ),
        st.sampled_from(sorted(KINDS)),
        st.sampled_from(PmuOrigin),
        st.tuples(*[st.sampled_from(PmuSetting)] * 3),
        st.tuples(_TEXTS, _TEXTS),
        st.tuples(st.sampled_from(("a", "b")), st.sampled_from(("x", None)), st.sampled_from(HOSTS)),
    ),
    max_size=8,
)


def grouped(instances: tuple[InstanceReport, ...], by: GroupBy) -> CloudGroups:
    aggregates = {"compute-1": ("fast", "amd"), "compute-2": ("fast",), "compute-3": ()}
    return group_instances(report(instances, (), tuple(compute(host, aggregates=names) for host, names in aggregates.items())), by)


@given(INSTANCES, st.sampled_from(GroupBy))
def test_standings_add_up_to_the_instances_and_groups_to_all(instances: list[InstanceReport], by: GroupBy) -> None:
    groups = grouped(tuple(instances), by)
    for counts in (*groups.groups, groups.total):
        assert sum(getattr(counts, each.value) for each in Standing) == counts.instances
    assert groups.total.instances == len(instances)
    for column in ("instances", *(each.value for each in Standing)):
        lines = sum(getattr(group, column) for group in groups.groups)
        assert lines - getattr(groups.total, column) >= 0
        if by is not GroupBy.AGGREGATE:
            assert lines == getattr(groups.total, column)
    assert sum(group.instances for group in groups.groups) == groups.total.instances + groups.counted_again


@given(INSTANCES)
def test_whoever_asked_for_the_pmu_is_never_told_as_one_that_nobody_asked_for(instances: list[InstanceReport]) -> None:
    for each in instances:
        if "true" in (each.flavor_hw_pmu, each.image_hw_pmu):
            assert standing(each) in {Standing.OPTED_OUT, Standing.CONFLICT, Standing.BEHIND_NOVA}


@given(INSTANCES)
def test_off_and_kept_is_never_said_of_what_was_seen_with_its_pmu_on(instances: list[InstanceReport]) -> None:
    for each in instances:
        if standing(each) is Standing.OFF_AND_KEPT:
            assert {each.persistent, each.live, each.next_setting}.isdisjoint({PmuSetting.ON, PmuSetting.DEFAULT_ON})


@pytest.mark.parametrize("kind", KINDS)
def test_every_standing_is_reached(kind: str) -> None:
    assert standing(instance(kind=kind)).value == kind


def test_instance_on_a_host_of_two_aggregates_is_in_both_and_counted_once_in_all() -> None:
    groups = grouped((instance(host="compute-1"), instance(host="compute-3"), instance(host=None)), GroupBy.AGGREGATE)
    assert {group.name: group.instances for group in groups.groups} == {"fast": 1, "amd": 1, None: 2}
    assert (groups.total.instances, groups.counted_again) == (3, 1)
    page = " ".join(groups_page(groups, LOOK).split())
    assert "the lines add up to 1 instance more than `all`" in page
    assert "(no aggregate, or not shown)" in page


def test_largest_group_is_first() -> None:
    instances = (instance(project="small"), instance(project="large"), instance(project="large"))
    assert [group.name for group in grouped(instances, GroupBy.PROJECT).groups] == ["large", "small"]


@pytest.mark.parametrize("by", GroupBy)
@pytest.mark.parametrize("width", [40, 80, 120])
def test_page_shows_every_group_and_the_sum_in_its_width(by: GroupBy, width: int) -> None:
    page = groups_page(grouped(one_of_each(), by), Look(width=width))
    assert all(len(line) <= width for line in page.split("\n"))
    assert re.search(r"\ball\b", page)
    assert counted(len(grouped(one_of_each(), by).groups), by.value) in page


def test_columns_that_are_empty_throughout_are_left_out() -> None:
    page = groups_page(grouped((instance(),), GroupBy.FLAVOR), LOOK)
    assert "on by default" in page
    assert "conflict" not in page


def test_page_of_many_groups_is_bounded_and_says_so() -> None:
    page = groups_page(grouped(tuple(instance(project=f"p{number}") for number in range(500)), GroupBy.PROJECT), LOOK)
    assert len(page.split("\n")) < 120
    assert "… and 400 more, see --format csv or json" in page
    assert re.search(r"^  all +500 +500$", page, flags=re.MULTILINE)


def test_csv_has_a_line_a_group_in_columns_that_do_not_move() -> None:
    rows = list(csv.DictReader(io.StringIO("".join(groups_csv(grouped((instance(project="p1"),), GroupBy.PROJECT), LOOK)))))
    assert rows == [
        {"project": "p1", "instances": "1", **{each.value: "1" if each is Standing.ON_BY_DEFAULT else "0" for each in Standing}}
    ]


def test_markdown_has_all_groups_and_the_sum() -> None:
    text = "".join(groups_markdown(grouped((instance(project="p1"), instance(project="p|2")), GroupBy.PROJECT), LOOK))
    assert "| `p1` | 1 | 1 |" in text
    assert r"| `p\|2` | 1 | 1 |" in text
    assert "| **all** | 2 | 2 |" in text


def test_cloud_without_an_instance_has_a_page() -> None:
    assert "0 instances" in groups_page(grouped((), GroupBy.ZONE), LOOK)
