"""The rules of a cloud: flavors, images, the catalogue, instances and waivers, each verdict reached."""

from datetime import UTC, datetime

import pytest
from audit_builders import facts
from nova_builders import (
    HOST_ID,
    RULEBOOK,
    SILENT_FLAVOR,
    SILENT_IMAGE,
    canary,
    cloud,
    findings,
    judged,
    names,
    running,
    server,
    side,
    stopped,
    uuid,
    verdicts,
)

from exitguard.audit.judge import judge
from exitguard.model.cloud import Flavor, Image
from exitguard.model.instance import PmuOrigin
from exitguard.model.pmu import PmuElement, PmuSetting
from exitguard.model.record import seen, unseen
from exitguard.model.time import format_rfc3339
from exitguard.policy.schema import Check, Rulebook, Waiver, WaiverScope

OFF = PmuElement.OFF


def flavor(name: str, hw_pmu: str | None) -> Flavor:
    return Flavor(id=f"id-of-{name}", name=name, hw_pmu=hw_pmu, is_public=True)


def image(number: int, name: str, hw_pmu: str | None) -> Image:
    return SILENT_IMAGE.model_copy(update={"id": uuid(900 + number), "name": name, "hw_pmu": hw_pmu})


FLAVORS = (flavor("silent", ""), flavor("off", "false"), flavor("on", "true"), flavor("hidden", None), flavor("odd", "maybe"))


def test_a_silent_flavor_fails_and_one_that_was_not_shown_is_unknown() -> None:
    report = judged(cloud(flavors=FLAVORS))
    assert verdicts(report, "NOVA-FLAVOR-SILENT") == {"silent": "fail", "hidden": "unknown", "odd": "unknown"}
    (failed,) = [each for each in findings(report, "NOVA-FLAVOR-SILENT") if each.verdict.value == "fail"]
    assert (failed.subject.id, failed.remedy) == ("id-of-silent", "nova_flavor_default")


def test_a_silent_flavor_passes_where_the_default_is_proven_on_all_compute_hosts() -> None:
    proven = cloud(server(image_hw_pmu=""))
    assert not findings(judged(proven, side(running(element=OFF))), "NOVA-FLAVOR-SILENT")


def test_a_default_that_is_proven_on_one_of_two_compute_hosts_does_not_do() -> None:
    report = judged(cloud(server(image_hw_pmu=""), hosts=("compute-7", "compute-8")), side(running(element=OFF)))
    assert verdicts(report, "NOVA-FLAVOR-SILENT") == {"m1.small": "fail"}
    assert "no default of Nova's is proven on compute-8" in findings(report, "NOVA-FLAVOR-SILENT")[0].reason


def test_a_default_that_is_proven_where_not_all_compute_hosts_are_shown_does_not_do() -> None:
    hidden = cloud(server(image_hw_pmu="")).model_copy(
        update={"services": unseen("Nova: services", "403"), "hypervisors": unseen("Nova: hypervisors", "403")}
    )
    report = judged(hidden, side(running(element=OFF)))
    assert verdicts(report, "NOVA-FLAVOR-SILENT") == {"m1.small": "fail"}


def test_an_image_counts_only_where_some_flavor_is_silent() -> None:
    images = (image(1, "open", ""), image(2, "off", "false"), image(3, "on", "true"), image(4, "hidden", None))
    report = judged(cloud(flavors=(SILENT_FLAVOR,), images=images))
    assert verdicts(report, "NOVA-IMAGE-SILENT") == {"open": "fail", "hidden": "unknown"}
    assert {each.severity.value for each in findings(report, "NOVA-IMAGE-SILENT")} == {"info"}
    assert verdicts(judged(cloud(flavors=(flavor("off", "false"),), images=images)), "NOVA-IMAGE-SILENT") == {}
    unsure = verdicts(judged(cloud(flavors=(flavor("hidden", None),), images=images)), "NOVA-IMAGE-SILENT")
    assert unsure == {"open": "unknown", "hidden": "unknown"}


def test_a_flavor_conflicts_with_images_that_say_the_other_and_names_some() -> None:
    images = tuple(image(number, f"profiled-{number}", "true") for number in range(5))
    report = judged(cloud(flavors=(*FLAVORS, SILENT_FLAVOR), images=(*images, SILENT_IMAGE)))
    assert verdicts(report, "NOVA-CATALOG-CONFLICT") == {"off": "fail", "hidden": "unknown", "odd": "unknown"}
    (failed,) = [each for each in findings(report, "NOVA-CATALOG-CONFLICT") if each.verdict.value == "fail"]
    assert "profiled-0, profiled-1, profiled-2 and 2 more" in failed.reason
    assert failed.remedy is None


def test_a_conflict_with_images_that_were_not_shown_is_not_known() -> None:
    hidden = cloud(flavors=(flavor("off", "false"), SILENT_FLAVOR)).model_copy(update={"images": unseen("Glance: images", "HTTP 503")})
    assert verdicts(judged(hidden), "NOVA-CATALOG-CONFLICT") == {"off": "unknown"}
    odd = cloud(flavors=(flavor("off", "false"),), images=(image(1, "odd", "maybe"),))
    assert verdicts(judged(odd), "NOVA-CATALOG-CONFLICT") == {"off": "unknown"}


def test_an_instance_drifts_from_a_flavor_that_was_changed_since() -> None:
    changed = SILENT_FLAVOR.model_copy(update={"hw_pmu": "false"})
    report = judged(cloud(server(), flavors=(changed,)), side(running()))
    (drift,) = findings(report, "NOVA-INSTANCE-DRIFT")
    assert drift.verdict.value == "fail"
    assert "says hw:pmu=false today, the copy embedded in the instance says nothing" in drift.reason


def test_a_flavor_that_is_deleted_since_is_said_and_is_no_drift() -> None:
    report = judged(cloud(server(flavor="gone"), flavors=()), side(running().model_copy(update={"nova": None})))
    (unknown,) = findings(report, "NOVA-INSTANCE-DRIFT")
    assert "its flavor gone is deleted since, or not shown" in unknown.reason
    gone = running()
    assert gone.nova is not None
    gone = gone.model_copy(update={"nova": gone.nova.model_copy(update={"flavor": "gone"})})
    assert not findings(judged(cloud(server(flavor="gone"), flavors=()), side(gone)), "NOVA-INSTANCE-DRIFT")


def test_a_run_that_differs_from_the_next_start_is_drift() -> None:
    """Started without the element, and migrated to a host whose Nova writes off: the next start takes the PMU away."""
    report = judged(cloud(server(image_hw_pmu=""), server(2, image_hw_pmu="")), side(running(generated=False), running(2, element=OFF)))
    assert report.instances[0].origin is PmuOrigin.CLOUD_DEFAULT
    (drift,) = findings(report, "NOVA-INSTANCE-DRIFT")
    assert drift.reason == "it runs with no <pmu> element, and starts with the PMU off next"


def test_what_cannot_be_compared_is_unknown() -> None:
    report = judged(cloud(server(flavor_hw_pmu="false"), flavors=(flavor("m1.small", "false"),)))
    (unknown,) = findings(report, "NOVA-INSTANCE-DRIFT")
    assert unknown.verdict.value == "unknown"
    assert "no facts of its host compute-7 were given" in unknown.reason
    blind = cloud(server(flavor_hw_pmu="false")).model_copy(update={"flavors": unseen("Nova: flavors", "403")})
    (unknown,) = findings(judged(blind, side(running(element=OFF))), "NOVA-INSTANCE-DRIFT")
    assert unknown.reason == "what its flavor says today was not shown"


def test_every_verdict_of_the_instance_rule_is_reached() -> None:
    servers = (server(1), server(2, flavor_hw_pmu="false"), server(3, flavor_hw_pmu="true"), server(4, status="VERIFY_RESIZE"))
    report = judged(
        cloud(*servers), side(running(1), running(2, element=OFF), running(3, element=PmuElement.ON), running(4, generated=False))
    )
    assert verdicts(report, "NOVA-INSTANCE-PMU") == {"web-1": "fail", "web-4": "unknown"}
    assert [each.next_setting for each in report.instances] == [
        PmuSetting.DEFAULT_ON,
        PmuSetting.OFF,
        PmuSetting.ON,
        PmuSetting.UNKNOWN,
    ]


def test_the_summary_counts_what_is_not_told_too() -> None:
    report = judged(cloud(server(1), server(2, flavor_hw_pmu="true")), side(running(1), running(2, element=PmuElement.ON)))
    told = [each.verdict.value for each in report.findings]
    assert {verdict: told.count(verdict) for verdict in set(told)}.items() <= report.summary.by_verdict.items()
    # One of sources, flavor, catalogue and image each, and three of each instance.
    assert sum(report.summary.by_verdict.values()) == 4 + 2 * 3
    assert sum(report.summary.by_origin.values()) == sum(report.summary.by_next_setting.values()) == 2
    assert report.summary.exit_code == 2


def test_every_check_of_a_cloud_has_a_rule_that_judges_here_and_none_on_a_host() -> None:
    here = {rule.id for rule in RULEBOOK.policy.rules if rule.check.value.startswith("nova_") and rule.check is not Check.NOVA_DEFAULT_OFF}
    assert len(here) == 7
    assert here.isdisjoint(each.rule for each in judge(facts(running()), RULEBOOK).findings)


def test_a_broken_check_is_an_error_of_its_rule_and_the_others_go_on() -> None:
    broken = cloud(server()).model_copy(update={"images": seen("Glance: images", (None,))})
    report = judged(broken.model_copy(update={"images_by_id": {}}))
    errors = [each for each in report.findings if each.verdict.value == "error"]
    assert {each.rule for each in errors} == {"NOVA-IMAGE-SILENT"}
    assert report.summary.exit_code == 1


def with_waiver(scope: WaiverScope, *rules: str, days_ago: int = 30, days: int = 3650) -> Rulebook:
    created = datetime(2026, 11, 23, tzinfo=UTC).timestamp() - days_ago * 86400
    waiver = Waiver.model_validate(
        {
            "id": "CHG-7",
            "rules": rules,
            "scope": scope,
            "justification": "the owner measures with it",
            "approver": "Ada",
            "created": format_rfc3339(datetime.fromtimestamp(created, UTC)),
            "expires": format_rfc3339(datetime.fromtimestamp(created + days * 86400, UTC)),
        }
    )
    return RULEBOOK.model_copy(update={"waivers": (waiver,)})


@pytest.mark.parametrize(
    ("scope", "waived"),
    [
        (WaiverScope(domains=(uuid(1),)), ["web-1"]),
        (WaiverScope(domains=("web-2",)), ["web-2"]),
        (WaiverScope(hosts=("compute-7",)), ["web-1", "web-2"]),
        (WaiverScope(hosts=(HOST_ID,)), ["web-1", "web-2"]),
        (WaiverScope(hosts=("*",)), ["web-1", "web-2"]),
        (WaiverScope(hosts=("compute-7",), domains=("web-2",)), ["web-2"]),
        (WaiverScope(hosts=("compute-8",), domains=("web-2",)), []),
        (WaiverScope(flavors=("*",)), []),
        (WaiverScope(images=("*",)), []),
    ],
)
def test_an_instance_s_failure_is_waived_by_uuid_name_or_compute_host(scope: WaiverScope, waived: list[str]) -> None:
    rulebook = with_waiver(scope, "NOVA-INSTANCE-PMU")
    report = judged(cloud(server(1), server(2)), side(stopped(1), stopped(2), running(3)), rulebook=rulebook)
    told = findings(report, "NOVA-INSTANCE-PMU")
    assert names(each for each in told if each.verdict.value == "waived") == waived
    assert {each.waiver for each in told if each.verdict.value == "waived"} <= {"CHG-7"}
    assert report.summary.by_verdict["waived"] == len(waived)


@pytest.mark.parametrize(
    ("scope", "rule", "waived"),
    [
        (WaiverScope(flavors=("m1.small",)), "NOVA-FLAVOR-SILENT", True),
        (WaiverScope(flavors=("1",)), "NOVA-FLAVOR-SILENT", True),
        (WaiverScope(flavors=("m1.large",)), "NOVA-FLAVOR-SILENT", False),
        (WaiverScope(images=(SILENT_IMAGE.id.upper(),)), "NOVA-IMAGE-SILENT", True),
        (WaiverScope(images=("Debian 12",)), "NOVA-IMAGE-SILENT", True),
        (WaiverScope(images=("Debian",)), "NOVA-IMAGE-SILENT", False),
        (WaiverScope(hosts=("*",)), "NOVA-FLAVOR-SILENT", False),
        (WaiverScope(domains=("*",)), "NOVA-IMAGE-SILENT", False),
    ],
)
def test_flavors_and_images_are_waived_by_name_or_id(scope: WaiverScope, rule: str, waived: bool) -> None:  # noqa: FBT001
    (told,) = findings(judged(cloud(), rulebook=with_waiver(scope, rule)), rule)
    assert (told.verdict.value == "waived") is waived


@pytest.mark.parametrize(
    ("rulebook", "words"),
    [
        (with_waiver(WaiverScope(flavors=("m1.small",)), "NOVA-FLAVOR-SILENT", days=1), "expired"),
        (with_waiver(WaiverScope(flavors=("m1.small",)), "NOVA-FLAVOR-SILENT", days_ago=-3), "created in the future"),
        (with_waiver(WaiverScope(domains=("web-1",)), "NOVA-FLAVOR-IMAGE-CONFLICT"), "covers no failing finding"),
        (with_waiver(WaiverScope(hosts=("compute-7",)), "NOVA-FLAVOR-IMAGE-CONFLICT"), "in force for this cloud"),
    ],
)
def test_a_waiver_that_covers_nothing_in_this_cloud_is_told(rulebook: Rulebook, words: str) -> None:
    (told,) = findings(judged(cloud(server()), side(running()), rulebook=rulebook), "POLICY-WAIVERS")
    assert told.verdict.value == "fail"
    assert words in told.reason


@pytest.mark.parametrize(
    "rulebook",
    [
        with_waiver(WaiverScope(flavors=("m1.small",)), "NOVA-FLAVOR-SILENT"),
        with_waiver(WaiverScope(domains=("elsewhere",)), "NOVA-INSTANCE-PMU"),
        with_waiver(WaiverScope(flavors=("of another cloud",)), "NOVA-FLAVOR-SILENT"),
        with_waiver(WaiverScope(hosts=("compute-7",)), "DOM-PMU-PERSISTENT", days=1),
    ],
)
def test_a_waiver_in_use_elsewhere_or_of_the_hosts_own_rules_is_no_failure_here(rulebook: Rulebook) -> None:
    assert not findings(judged(cloud(server()), side(running()), rulebook=rulebook), "POLICY-WAIVERS")


def test_a_host_s_audit_says_nothing_of_waivers_for_a_cloud() -> None:
    rulebook = with_waiver(WaiverScope(hosts=("*",)), "NOVA-INSTANCE-PMU", days=1)
    assert not [each for each in judge(facts(running()), rulebook).findings if each.rule == "POLICY-WAIVERS"]


def test_whoever_asked_for_the_pmu_is_given_no_remedy_by_any_rule() -> None:
    asking = (server(1, flavor_hw_pmu="true"), server(2, image_hw_pmu="true"), server(3, flavor_hw_pmu="true", image_hw_pmu="false"))
    report = judged(cloud(*asking, canaries=(canary("absent"),)), side(stopped(1), stopped(2), stopped(3)))
    assert not [each for each in report.findings if each.subject.kind.value == "instance" and each.remedy is not None]
