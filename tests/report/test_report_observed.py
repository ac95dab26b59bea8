"""Everything that was not seen is found, wherever in a document it hides."""

from types import SimpleNamespace

from exitguard.model.host import QemuBinary
from exitguard.model.record import seen, unseen
from exitguard.report.observed import missing, sightings


def test_what_is_inside_of_a_seen_value_is_found_too(build: SimpleNamespace) -> None:
    program = QemuBinary(path="/opt/qemu", version=unseen("/opt/qemu", "permission denied"), capability_string=seen("/opt/qemu", True))
    report = build.report(host_report=build.host(qemu=seen("/proc", (program,))))
    found = [sighting for sighting in sightings(report) if sighting.topic == "host.qemu.version"]
    assert [(sighting.within, sighting.observed.reason) for sighting in found] == [(("/opt/qemu",), "permission denied")]


def test_the_same_fact_of_many_programs_is_one_gap(build: SimpleNamespace) -> None:
    programs = tuple(
        QemuBinary(path=f"/opt/qemu-{number}", version=unseen("/proc", "permission denied"), capability_string=seen("/opt", True))
        for number in range(300)
    )
    report = build.report(host_report=build.host(qemu=seen("/proc", programs)))
    gaps = [gap for gap in missing(report) if gap.topics == ("host.qemu.version",)]
    assert len(gaps) == 1
    assert len(gaps[0].within) == 300
    assert gaps[0].within[0] == ("/opt/qemu-0",)


def test_all_that_one_source_kept_back_is_one_gap(build: SimpleNamespace) -> None:
    remote = unseen("qemu+ssh://far/system", "remote")
    report = build.report(host_report=build.host(cpu=remote, mitigations=remote))
    assert [gap.topics for gap in missing(report) if gap.reason == "remote"] == [("host.cpu", "host.mitigations")]


def test_different_reasons_stay_apart(build: SimpleNamespace) -> None:
    report = build.report(host_report=build.host(cpu=unseen("/proc/cpuinfo", "first"), mitigations=unseen("/proc/cpuinfo", "second")))
    assert {gap.reason for gap in missing(report)} >= {"first", "second"}
