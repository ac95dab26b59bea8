"""Names and metadata that a tenant may choose, in a real libvirt: they are text, and never more than that."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from audits import domain_facts, domain_report, observe_uri, run_command
from domain_documents import NOVA_METADATA, guest_xml, uuid_of
from libvirt_lab import LibvirtLab
from recorded_hosts import on_debian_12

from exitguard.audit.judge import judge
from exitguard.model.documents import AuditReport, FactsDocument
from exitguard.model.domain import OwnerKind
from exitguard.model.pmu import ChainState, PmuSetting
from exitguard.policy.schema import Rulebook

pytestmark = pytest.mark.integration

#: As far as libvirt takes them: it refuses `/`, line feeds and names of white space only.
HOSTILE_NAMES = (
    "-cpu max,pmu=on",
    "-uuid",
    "$(touch owned)",
    "`touch owned`; touch owned",
    "{{ lookup('pipe', 'touch owned') }}",
    "%s%n%x{0}",
    "[bold red]not markup",
    "<pmu state='on'>&amp;]]>",
    '=HYPERLINK("mailto:a@example.org")',
    "...",
    ".hidden",
    "\u202egnp.exe\u2066",
    "\u0430dmin\u200b",
    "tab\there",
    "\x9b31mcsi",
    "x" * 200,
    "\U0001f4a9" * 20,
    "' OR 1=1; DROP TABLE domains; --",
)
#: Metadata and descriptions that speak of the PMU without meaning it.
DECOYS = {
    "pmu-in-metadata": "<a:pmu xmlns:a='urn:a' state='off'/><b:features xmlns:b='urn:b'><b:pmu state='off'/></b:features>",
    "nova-below-another": f"<a:box xmlns:a='urn:a'>{NOVA_METADATA}</a:box>",
    "lock-below-another": "<a:box xmlns:a='urn:a'><e:locked xmlns:e='urn:exitguard:domain:1'/></a:box>",
    "deep": "<a:d xmlns:a='urn:a'>" + "<a:d>" * 200 + "</a:d>" * 200 + "</a:d>",
    "large": f"<a:d xmlns:a='urn:a'>{'&lt;pmu state=&quot;off&quot;/&gt; ' * 20_000}</a:d>",
}


@pytest.fixture(scope="module")
def named(lab: LibvirtLab) -> LibvirtLab:
    """Guests of every hostile name, defined; the first of them also runs."""
    lab.define(*(guest_xml(name, mode="maximum") for name in HOSTILE_NAMES))
    lab.define(*(guest_xml(name, mode="maximum", metadata=metadata) for name, metadata in DECOYS.items()))
    lab.start("-cpu max,pmu=on", "-uuid", "<pmu state='on'>&amp;]]>")
    return lab


@pytest.fixture(scope="module")
def facts(named: LibvirtLab) -> FactsDocument:
    return observe_uri(named.uri)


@pytest.fixture(scope="module")
def report(facts: FactsDocument, tcg_rulebook: Rulebook) -> AuditReport:
    return judge(on_debian_12(facts), tcg_rulebook)


def test_hostile_names_arrive_as_they_are(facts: FactsDocument) -> None:
    assert {domain.name for domain in facts.domains} == {*HOSTILE_NAMES, *DECOYS}


@pytest.mark.parametrize("name", [*HOSTILE_NAMES, *DECOYS], ids=range(len(HOSTILE_NAMES) + len(DECOYS)))
def test_setting_comes_from_the_definition_and_from_nothing_else(report: AuditReport, name: str) -> None:
    assert domain_report(report, name).pmu.persistent is PmuSetting.DEFAULT_ON


def test_name_that_looks_like_options_is_not_read_as_any(report: AuditReport, named: LibvirtLab) -> None:
    for name in ("-cpu max,pmu=on", "-uuid", "<pmu state='on'>&amp;]]>"):
        assert "-cpu" in named.command_line(uuid_of(name))
        domain = domain_report(report, name)
        assert domain.pmu.live is PmuSetting.DEFAULT_ON
        assert domain.chain.state is ChainState.ON


def test_metadata_of_another_manager_is_not_nova_and_no_lock(facts: FactsDocument) -> None:
    for name in ("nova-below-another", "lock-below-another"):
        domain = domain_facts(facts, name)
        assert domain.owner.kind is OwnerKind.UNKNOWN
        assert domain.nova is None
        assert not domain.locked


@pytest.mark.parametrize("form", ["table", "json"])
def test_no_control_character_reaches_a_terminal_and_nothing_is_run(named: LibvirtLab, tmp_path: Path, form: str) -> None:
    result = run_command(tmp_path / "home", "--connect", named.uri, "--format", form, "--no-store")
    assert result.exit_code in (0, 2, 3)
    assert [character for character in result.stdout if not character.isprintable() and character != "\n"] == []
    assert list(tmp_path.rglob("owned")) == []
    assert not Path("owned").exists()


def test_hostile_names_are_remembered_and_told_again(named: LibvirtLab, tmp_path: Path) -> None:
    home = tmp_path / "home"
    state = tmp_path / "state"
    audit = run_command(home, "--connect", named.uri, "--format", "json", "--state-dir", state)
    assert "Not stored" not in audit.stderr
    command = [sys.executable, "-m", "exitguard", "report", "--format", "json", "--state-dir", str(state)]
    told = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=60, check=False)
    assert told.returncode == audit.exit_code, told.stderr
    assert json.loads(told.stdout)["domains"] == audit.document["domains"]


def test_overrides_behind_libvirts_back_are_unknown_before_the_start(lab: LibvirtLab, tcg_rulebook: Rulebook) -> None:
    def passing(*words: str) -> str:
        return "<qemu:commandline>" + "".join(f"<qemu:arg value='{word}'/>" for word in words) + "</qemu:commandline>"

    overrides = {
        "global-driver": passing("-global", "driver=max-x86_64-cpu,property=pmu,value=on"),
        "global": passing("-global", "max-x86_64-cpu.pmu=on"),
        "second-cpu": passing("-cpu", "max,pmu=on"),
        "config-file": passing("-readconfig", "/dev/null"),
    }
    lab.define(*(guest_xml(name, mode="maximum", pmu="off", extra=extra) for name, extra in overrides.items()))
    report = judge(on_debian_12(observe_uri(lab.uri)), tcg_rulebook)
    for name in overrides:
        assert domain_report(report, name).pmu.persistent is PmuSetting.UNKNOWN, name
