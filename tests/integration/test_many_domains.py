"""Five hundred domains in one audit, each asked about once; and the exit codes of the real command line over a real libvirt."""

import json
from collections import Counter
from itertools import cycle, islice
from pathlib import Path

import pytest
from audits import run_command
from blocking_proxy import blocking_proxy
from domain_documents import guest_xml, uuid_of
from libvirt_lab import LibvirtLab

from exitguard.model.host import Target, TargetKind

pytestmark = pytest.mark.integration

COUNT = 500
MODES = list(islice(cycle([(mode, pmu) for mode in (None, "custom", "maximum") for pmu in ("absent", "off", "on")]), COUNT))
NAMES = [f"guest-{number:03}" for number in range(COUNT)]


@pytest.fixture(scope="module")
def crowd(lab: LibvirtLab) -> LibvirtLab:
    lab.define(*(guest_xml(name, mode=mode, pmu=pmu) for name, (mode, pmu) in zip(NAMES, MODES, strict=True)))
    return lab


def expected_settings() -> Counter[str]:
    defaults = {None: "default_off", "custom": "default_off", "maximum": "default_on"}
    return Counter(defaults[mode] if pmu == "absent" else pmu for mode, pmu in MODES)


def test_five_hundred_domains_are_each_asked_about_once_and_told_once(crowd: LibvirtLab, tmp_path: Path, tcg_policy: Path) -> None:
    with blocking_proxy(tmp_path, crowd.socket) as proxy:
        result = run_command(tmp_path / "home", "--connect", proxy.uri, "--policy", tcg_policy, "--format", "json", "--no-store")
    assert proxy.connections == 1
    assert Counter(proxy.asked) == dict.fromkeys(map(uuid_of, NAMES), 1)
    domains = result.document["domains"]
    assert sorted(domain["uuid"] for domain in domains) == sorted(map(uuid_of, NAMES))
    assert Counter(domain["pmu"]["persistent"] for domain in domains) == expected_settings()
    assert {domain["pmu"]["live"] for domain in domains} == {"none"}
    assert sum(result.document["summary"]["by_chain"].values()) == COUNT


def test_audits_of_five_hundred_domains_differ_in_their_time_only(crowd: LibvirtLab, tmp_path: Path) -> None:
    def audit() -> object:
        document = run_command(tmp_path / "home", "--connect", crowd.uri, "--format", "json", "--no-store").document
        assert document["host"]["target"] == Target(kind=TargetKind.LOCAL, uri=crowd.uri).model_dump(mode="json")
        text = json.dumps(document["domains"])
        return text.replace(document["observed_at"], "")

    assert audit() == audit()
