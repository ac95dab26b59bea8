import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.facts.identity import (
    parse_dmi_uuid,
    parse_hostname,
    parse_machine_id,
    provisional_host_id,
    read_dmi_uuid,
    read_hostname,
    read_machine_id,
)
from exitguard.facts.tree import HostTree

MACHINE_ID = "0123456789abcdef0123456789abcdef"


def test_machine_id_is_validated() -> None:
    assert parse_machine_id(MACHINE_ID + "\n").get() == MACHINE_ID
    assert "malformed" in (parse_machine_id("0123").reason or "")
    assert "malformed" in (parse_machine_id("0" * 32).reason or "")


@pytest.mark.parametrize("text", ["", "uninitialized\n"])
def test_machine_id_of_an_image_that_never_booted_has_a_reason(text: str) -> None:
    assert "not initialised" in (parse_machine_id(text).reason or "")


def test_dmi_uuid_that_firmware_left_unset_has_a_reason() -> None:
    assert parse_dmi_uuid("4C4C4544-0042-3510-8053-B4C04F4D3732\n").get() == "4c4c4544-0042-3510-8053-b4c04f4d3732"
    assert parse_dmi_uuid("00000000-0000-0000-0000-000000000000").reason == "the firmware was given none"
    assert parse_dmi_uuid("FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF").reason == "the firmware was given none"
    assert not parse_dmi_uuid("Not Settable").known


def test_running_hostname_goes_before_the_configured_one(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/hostname").write_text("# a comment\nconfigured\n")
    observed = read_hostname(HostTree(tmp_path))
    assert (observed.source, observed.value) == ("/etc/hostname", "configured")
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/hostname").write_text("running\n")
    assert read_hostname(HostTree(tmp_path)).value == "running"


def test_hostname_cannot_carry_terminal_escapes() -> None:
    assert parse_hostname("x", "\x1b[2Jnode\n").get() == "[2Jnode"
    assert parse_hostname("x", "(none)\n").reason == "no hostname is set"


def test_provisional_id_is_stable_and_does_not_show_the_machine_id() -> None:
    host_id = provisional_host_id(MACHINE_ID, "node-1")
    assert host_id == provisional_host_id(MACHINE_ID, "node-2")
    assert uuid.UUID(host_id).version == 5
    assert host_id.replace("-", "") != MACHINE_ID


def test_provisional_id_without_a_machine_id_comes_from_the_hostname() -> None:
    ids = {
        provisional_host_id(None, "node-1"),
        provisional_host_id(None, "node-2"),
        provisional_host_id(None),
        provisional_host_id(MACHINE_ID),
    }
    assert len(ids) == 4


def test_provisional_id_never_changes_between_versions() -> None:
    assert provisional_host_id(MACHINE_ID) == "4395de61-6099-5dde-b52a-5337b2238740"


def test_empty_sysroot_has_reasons(tmp_path: Path) -> None:
    tree = HostTree(tmp_path)
    assert [read(tree).reason for read in (read_hostname, read_machine_id, read_dmi_uuid)] == ["no such file or directory"] * 3


@given(st.text())
def test_arbitrary_text_yields_a_value_or_a_reason(text: str) -> None:
    parse_hostname("x", text)
    parse_dmi_uuid(text)
    observed = parse_machine_id(text)
    assert observed.value is None or len(observed.value) == 32
