"""One option of nova.conf, read as oslo.config reads it; whatever else stands in these files reaches nobody."""

import json
import subprocess
import sys
import tempfile
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.cycle import AuditRequest, run_audit
from exitguard.facts.collect import collect, read_identity
from exitguard.facts.libvirt import Patience
from exitguard.facts.nova_conf import NovaConfError, parse, read_nova_option
from exitguard.facts.tree import HostTree
from exitguard.model.host import HostFacts, NovaOption, Target, TargetKind
from exitguard.model.record import Observed
from exitguard.policy.parameters import NovaDefaultParameters

MAIN, COMPUTE, KOLLA = "/etc/nova/nova.conf", "/etc/nova/nova-compute.conf", "/etc/kolla/nova-compute/nova.conf"
LOOKED_FOR = NovaDefaultParameters(option="libvirt.default_pmu", value="false")
SECRET = "hunter2-correct-horse"  # noqa: S105 - what must not be found anywhere
WITH_SECRETS = f"""\
[DEFAULT]
transport_url = rabbit://openstack:{SECRET}@controller:5672/
[database]
connection = mysql+pymysql://nova:{SECRET}@controller/nova
[keystone_authtoken]
password = {SECRET}
  {SECRET}
# {SECRET}
"""


def read(root: Path, name: str = "libvirt.default_pmu", expected: str = "false", **files: str) -> Observed[NovaOption]:
    """What a host says whose files are as given: `main`, `compute` and `kolla`."""
    for path, text in ((MAIN, files.get("main")), (COMPUTE, files.get("compute")), (KOLLA, files.get("kolla"))):
        if text is not None:
            (root / path[1:]).parent.mkdir(parents=True, exist_ok=True)
            (root / path[1:]).write_text(text)
    return read_nova_option(HostTree(root), name, expected, LOOKED_FOR.files)


# What one file says. Each case was compared with oslo.config 9.0.0 and 10.7.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[libvirt]\ndefault_pmu = false\n", "false"),
        ("[libvirt]\ndefault_pmu=false", "false"),
        ("[libvirt]\ndefault_pmu : false\n", "false"),
        ("[libvirt]\ndefault_pmu := x\n", "= x"),
        ("[LibVirt]\r\ndefault_pmu = false\r\n", "false"),
        ("[libvirt]\ndefault_pmu = true\ndefault_pmu = false\n", "false"),
        ("[libvirt]\ndefault_pmu = true\n[vnc]\nx = 1\n[libvirt]\ndefault_pmu = false\n", "false"),
        ("[libvirt]\ndefault_pmu = 'false'\n", "false"),
        ('[libvirt]\ndefault_pmu = "\n', ""),
        ("[libvirt]\ndefault_pmu = false # no comment here\n", "false # no comment here"),
        ("[libvirt]\ndefault_pmu = one\n  two\n\tthree\n", "one\ntwo\nthree"),
        ("[libvirt]\ndefault_pmu = \n", ""),
        ("[libvirt]\nkey = value\n default_pmu = false\n", None),  # indented: more of the key's value
        ("[libvirt]\n#default_pmu = false\n;default_pmu = false\n", None),
        ("[libvirt]\nDefault_PMU = false\n", None),
        ("[ libvirt ]\ndefault_pmu = false\n", None),
        ("[DEFAULT]\ndefault_pmu = false\n", None),  # no section takes over from [DEFAULT]
        ("[libvirt]\nx = y\x0bdefault_pmu = false\n", None),  # no new line
        ("", None),
    ],
)
def test_an_option_is_read_as_oslo_config_reads_it(text: str, value: str | None, tmp_path: Path) -> None:
    (tmp_path / "nova.conf").write_text(text, newline="")
    assert parse((tmp_path / "nova.conf").read_bytes().decode(), "libvirt", "default_pmu") == value


@pytest.mark.parametrize(("written", "value"), [("DEFAULT", "false"), ("default", None), ("Default", None)])
def test_the_section_default_is_written_in_capitals(written: str, value: str | None) -> None:
    assert parse(f"[{written}]\ndefault_pmu = false\n", "DEFAULT", "default_pmu") == value


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[libvirt\ndefault_pmu = false\n", 1),
        ("[]\n", 1),
        ("default_pmu = false\n", 1),
        ("[libvirt]\n\n  indented = after nothing\n", 3),
        ("[libvirt]\ndefault_pmu = false\nno assignment\n", 3),
        ("[libvirt]\n = no key\n", 2),
        ("\ufeff[libvirt]\n", 1),
    ],
)
def test_a_file_that_nova_would_not_start_with_says_nothing_and_the_line_is_named(text: str, line: int) -> None:
    with pytest.raises(NovaConfError, match=f"^line {line} "):
        parse(text, "libvirt", "default_pmu")


_lines = st.sampled_from(["[libvirt]", "[x", "default_pmu = off", "password: p", " more", "", "# c", "junk", "=", "[]", "default_pmu: '"])


@given(st.one_of(st.text(max_size=200), st.lists(_lines, max_size=12).map("\n".join)))
def test_any_text_is_settings_or_a_nova_conf_error(text: str) -> None:
    with suppress(NovaConfError):
        value = parse(text, "libvirt", "default_pmu")
        assert value is None or "default_pmu" in text


@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Z"]), min_size=1, max_size=40))
def test_a_value_comes_back_as_it_was_written_but_for_one_pair_of_quotes(value: str) -> None:
    quoted = value[0] == value[-1] and value[0] in "\"'"
    assert parse(f"[a]\nkey = {value}\n", "a", "key") == (value[1:-1] if quoted else value)


# What several files say


def test_of_several_files_the_last_that_sets_the_option_counts(tmp_path: Path) -> None:
    off, on = "[libvirt]\ndefault_pmu = false\n", "[libvirt]\ndefault_pmu = true\n"
    found = read(tmp_path, main=on, compute=off, kolla="[DEFAULT]\n")
    assert found.value == NovaOption(name="libvirt.default_pmu", file=COMPUTE, value="false")
    assert found.source == f"{MAIN}, {COMPUTE}, {KOLLA}"


def test_an_option_that_no_file_sets_is_seen_as_not_set(tmp_path: Path) -> None:
    found = read(tmp_path, main="[libvirt]\nvirt_type = kvm\n")
    assert (found.source, found.value) == (MAIN, NovaOption(name="libvirt.default_pmu", file=None, value=None))


def test_a_host_without_any_of_the_files_has_a_reason(tmp_path: Path) -> None:
    found = read(tmp_path)
    assert (found.value, found.reason) == (None, "no such file: nova-compute is not installed here, or has its settings elsewhere")


def test_a_folder_that_is_a_file_is_no_settings(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nova").write_text("")
    assert "no such file" in (read(tmp_path).reason or "")


@pytest.mark.parametrize("bad", ["[libvirt\n", "x" * ((1 << 20) + 1), "[libvirt]\ndefault_pmu = \udcff\n"])
def test_one_file_that_cannot_be_followed_makes_it_unknown(bad: str, tmp_path: Path) -> None:
    (tmp_path / "etc/nova").mkdir(parents=True)
    (tmp_path / COMPUTE[1:]).write_bytes(bad.encode(errors="surrogateescape"))
    found = read(tmp_path, main="[libvirt]\ndefault_pmu = false\n")
    assert (found.source, found.value) == (COMPUTE, None)


def test_a_directory_in_place_of_a_file_has_a_reason(tmp_path: Path) -> None:
    (tmp_path / MAIN[1:]).mkdir(parents=True)
    assert read(tmp_path).reason == "not a regular file"


@pytest.mark.parametrize(("folder", "file"), [(0o755, 0), (0, 0o644)])
def test_settings_that_may_not_be_read_are_unseen_and_the_privilege_is_named(folder: int, file: int) -> None:
    # As another user where root runs the tests: root may read everything.
    script = f"""
import os, pathlib, sys
from exitguard.facts.nova_conf import read_nova_option
from exitguard.facts.tree import HostTree
if os.getuid() == 0:
    os.seteuid(65534)
found = read_nova_option(HostTree(pathlib.Path(sys.argv[1])), "libvirt.default_pmu", "false", ("{MAIN}", "{COMPUTE}"))
print(found.source, found.value, found.reason, found.unlock, sep=" / ")
"""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        (root / "etc/nova").mkdir(parents=True)
        (root / MAIN[1:]).write_text("[libvirt]\ndefault_pmu = false\n")
        (root / MAIN[1:]).chmod(file)
        (root / "etc/nova").chmod(folder)
        shown = subprocess.run([sys.executable, "-c", script, name], capture_output=True, text=True, check=True).stdout
        (root / "etc/nova").chmod(0o755)
    assert shown == f"{MAIN} / None / permission denied / run as root, or grant CAP_DAC_READ_SEARCH\n"


# What is kept of a value


@pytest.mark.parametrize("value", ["true", "False", "0", "yes", "t"])
def test_a_boolean_is_kept(value: str, tmp_path: Path) -> None:
    found = read(tmp_path, main=f"[libvirt]\ndefault_pmu = {value}\n").value
    assert found is not None
    assert found.value == value


def test_the_text_that_is_looked_for_is_kept(tmp_path: Path) -> None:
    found = read(tmp_path, expected="never", main="[libvirt]\ndefault_pmu = never\n").value
    assert found is not None
    assert found.value == "never"


@pytest.mark.parametrize("name", ["DEFAULT.transport_url", "database.connection", "keystone_authtoken.password"])
def test_an_option_that_turns_out_to_be_a_secret_is_not_kept(name: str, tmp_path: Path) -> None:
    found = read(tmp_path, name, main=WITH_SECRETS)
    assert found.value == NovaOption(name=name, file=MAIN, value=None)
    assert SECRET not in found.model_dump_json()


# Nothing else of these files reaches anybody


def audited(root: Path, policy: Path) -> str:
    """Everything that one audit of a file tree gives: facts, report and notices."""
    outcome = run_audit(AuditRequest(sysroot=root, policy_files=(policy,)))
    return outcome.observation.model_dump_json() + outcome.report.model_dump_json() + "".join(outcome.notices)


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """The rule alone, with its parameters."""
    path = tmp_path / "policy.yaml"
    path.write_text(
        "kind: policy\nschema_version: 1\nid: site\nversion: '1'\ntitle: a policy\nrules:\n"
        "  - id: SITE-NOVA\n    severity: low\n    title: a title\n    rationale: a reason\n    subject: host\n"
        "    check: nova_default_off\n    parameters: {option: libvirt.default_pmu, value: 'false'}\n"
    )
    return path


@pytest.mark.parametrize(
    "text",
    [
        WITH_SECRETS + "[libvirt]\ndefault_pmu = false\n",
        WITH_SECRETS + f"[libvirt]\ndefault_pmu = {SECRET}\n",
        WITH_SECRETS + f"[{SECRET}\n",
        WITH_SECRETS + f"{SECRET}\n",
        f"{SECRET} = {SECRET}\n",
        f"  {SECRET}\n",
        f"[x]\n = {SECRET}\n",
        WITH_SECRETS + f"{SECRET}\udcff\n",
        WITH_SECRETS + SECRET * 100_000,
    ],
)
def test_no_other_text_of_the_file_reaches_facts_report_or_log(
    text: str, policy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "root"
    (root / "etc/nova").mkdir(parents=True)
    (root / MAIN[1:]).write_bytes(text.encode(errors="surrogateescape"))
    caplog.set_level("DEBUG")
    shown = audited(root, policy)
    assert MAIN in shown  # it was looked at
    printed = capfd.readouterr()
    assert SECRET not in shown + printed.out + printed.err + caplog.text


@pytest.mark.parametrize("text", [f"[{SECRET}\n", f"[x]\n{SECRET}\n", f"{SECRET} = 1\n", f" {SECRET}\n", f"[x]\n= {SECRET}\n"])
def test_no_text_of_the_file_is_in_an_error_nor_in_what_it_came_from(text: str) -> None:
    with pytest.raises(NovaConfError) as caught:
        parse(text, "libvirt", "default_pmu")
    assert SECRET not in repr(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


# In the facts of a host


def host_facts(root: Path, looked_for: NovaDefaultParameters | None, kind: TargetKind = TargetKind.SYSROOT) -> HostFacts:
    target = Target(kind=kind, sysroot=str(root)) if kind is TargetKind.SYSROOT else Target(kind=kind, uri="qemu+ssh://[::1]:1/system")
    tree = HostTree(root)
    identity = read_identity(target, tree, host_id="5f9d3a52-1c0a-4a1c-9d39-61b3f7a0c0de", provisional=True)
    now = datetime(2026, 11, 22, tzinfo=UTC)
    return collect(
        target, identity, tree, changelog_markers=("x",), patience=Patience(10), observed_at=now, nova_default=looked_for
    ).facts.host


def test_facts_without_a_policy_that_names_an_option_are_as_they_were(tmp_path: Path) -> None:
    read(tmp_path, main="[libvirt]\ndefault_pmu = false\n")
    without = host_facts(tmp_path, None)
    assert without.nova_option is None
    assert "nova_option" not in without.model_dump(mode="json")


def test_facts_hold_the_option_and_read_back(tmp_path: Path) -> None:
    read(tmp_path, main="[libvirt]\ndefault_pmu = false\n")
    host = host_facts(tmp_path, LOOKED_FOR)
    assert host.nova_option is not None
    assert host.nova_option.value == NovaOption(name="libvirt.default_pmu", file=MAIN, value="false")
    assert HostFacts.model_validate_json(json.dumps(host.model_dump(mode="json"))) == host


def test_of_a_remote_host_this_machines_settings_are_not_read(tmp_path: Path) -> None:
    read(tmp_path, main="[libvirt]\ndefault_pmu = false\n")
    option = host_facts(tmp_path, LOOKED_FOR, TargetKind.REMOTE).nova_option
    assert option is not None
    assert (option.reason or "").startswith("remote: ")
