"""Laws of a cloud's audit, over random clouds: who asked is left alone, nothing is lost, and more facts never turn a verdict around."""

from hypothesis import given, settings
from hypothesis import strategies as st
from nova_builders import SILENT_IMAGE, canary, cloud, judged, remedied, running, server, side, stopped

from exitguard.audit.cloud import HostSide
from exitguard.audit.nova import wish
from exitguard.model.cloud import CloudFacts, RemediedInstance, Server
from exitguard.model.domain import DomainFacts
from exitguard.model.finding import Verdict
from exitguard.model.pmu import PmuElement

STATUSES = ("ACTIVE", "SHUTOFF", "ERROR", "BUILD", "VERIFY_RESIZE", "MIGRATING", "REBUILD", "SHELVED_OFFLOADED", "DELETED", "SOMETHING_NEW")
MOST = 5

texts = st.sampled_from(("", "false", "true", "maybe", None))
elements = st.sampled_from(PmuElement)
servers = st.lists(
    st.builds(
        lambda flavor, image, status, host: {"flavor_hw_pmu": flavor, "image_hw_pmu": image, "status": status, "host": host},
        texts,
        texts,
        st.sampled_from(STATUSES),
        st.sampled_from(("compute-7", "compute-8", None)),
    ),
    max_size=MOST,
).map(lambda rows: tuple(server(number, **row) for number, row in enumerate(rows)))
domains = st.lists(
    st.one_of(
        st.builds(
            lambda element, defined, mode, generated: (
                lambda number: running(number, element, defined=defined, mode=mode, generated=generated)
            ),
            elements,
            elements,
            st.sampled_from(("host-passthrough", "custom")),
            st.booleans(),
        ),
        st.builds(lambda element: lambda number: stopped(number, element), elements),
    ),
    max_size=MOST,
).map(lambda makers: tuple(make(number) for number, make in enumerate(makers)))
records = st.lists(st.integers(0, MOST - 1), unique=True, max_size=2).map(lambda numbers: tuple(remedied(number) for number in numbers))
canaries = st.lists(st.sampled_from(("off", "absent", "on")).map(canary), max_size=1).map(tuple)
images = st.sampled_from(("", "false", "true", None)).map(lambda text: (SILENT_IMAGE.model_copy(update={"hw_pmu": text}),))


@st.composite
def clouds(draw: st.DrawFn) -> tuple[CloudFacts, tuple[HostSide, ...]]:
    of_servers: tuple[Server, ...] = draw(servers)
    of_domains: tuple[DomainFacts, ...] = draw(domains)
    noted: tuple[RemediedInstance, ...] = draw(records)
    seen = cloud(*of_servers, images=draw(images), remedied=noted, canaries=draw(canaries), hosts=("compute-7", "compute-8"))
    return seen, (side(*of_domains),)


@settings(deadline=None)
@given(clouds())
def test_whoever_asked_for_the_pmu_is_never_failed_for_it_and_is_given_no_remedy(drawn: tuple[CloudFacts, tuple[HostSide, ...]]) -> None:
    of, sides = drawn
    asked = {each.uuid for each in of.servers.get() if wish(each.flavor_hw_pmu) is True or wish(each.image_hw_pmu) is True}
    for finding in judged(of, *sides).findings:
        if finding.subject.id in asked:
            assert finding.remedy is None
            assert (finding.rule, finding.verdict) != ("NOVA-INSTANCE-PMU", Verdict.FAIL)


@settings(deadline=None)
@given(clouds())
def test_every_instance_is_reported_and_every_verdict_counted(drawn: tuple[CloudFacts, tuple[HostSide, ...]]) -> None:
    of, sides = drawn
    report = judged(of, *sides)
    assert [each.uuid for each in report.instances] == [each.uuid for each in of.servers.get()]
    assert sum(report.summary.by_origin.values()) == sum(report.summary.by_next_setting.values()) == len(report.instances)
    # Sources, and two of the one flavor and one of the one image; three of each instance.
    assert sum(report.summary.by_verdict.values()) == 4 + 3 * len(report.instances)
    for finding in report.findings:
        assert finding.verdict in (Verdict.FAIL, Verdict.UNKNOWN)
        assert finding.reason
    for instance in report.instances:
        assert instance.origin_reason
        assert instance.survives_reason
        assert instance.evidence
        assert type(instance).model_validate_json(instance.model_dump_json()) == instance


@settings(deadline=None)
@given(clouds())
def test_what_is_said_of_the_next_start_without_facts_of_hosts_stays_true_with_them(drawn: tuple[CloudFacts, tuple[HostSide, ...]]) -> None:
    of, sides = drawn
    blind = {each.uuid: each for each in judged(of).instances}
    for told in judged(of, *sides).instances:
        before = blind[told.uuid]
        # Glance's word and a record of this agent are given up where what Nova wrote since denies them.
        sure = told.flavor_hw_pmu is not None and of.servers_by_uuid[told.uuid].image_hw_pmu is not None
        if sure and before.next_element is not None:
            assert told.next_element is before.next_element
