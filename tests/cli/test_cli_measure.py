"""`exitguard measure` by the command line: what this machine can show of it, which is the refusal where KVM is software or missing."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from exitguard.schemas import schema

Run = Callable[..., subprocess.CompletedProcess[str]]

#: Short, so that a machine with hardware virtualisation is not kept busy either.
_SHORT = ("--seconds", "1", "--iterations", "500", "--loop", "cpuid")
_SOFTWARE = Path("/sys/module/kvm_pvm").exists() and os.access("/dev/kvm", os.R_OK | os.W_OK)
needs_software_kvm = pytest.mark.skipif(not _SOFTWARE, reason="no software KVM (kvm_pvm) is loaded")


def test_document_fits_its_schema_and_exit_code(exitguard: Run) -> None:
    result = exitguard("measure", *_SHORT, "--format", "json")
    document = json.loads(result.stdout)
    Draft202012Validator(schema("measurement")).validate(document)
    assert result.returncode == (0 if document["refused"] is None else 3), result.stderr
    assert bool(document["loops"]) == (document["refused"] is None)
    assert document["host_id_provisional"] is True


@needs_software_kvm
def test_software_kvm_is_refused_with_the_right_reason(exitguard: Run) -> None:
    result = exitguard("measure", *_SHORT)
    assert result.returncode == 3
    assert result.stdout.startswith("REFUSED")
    assert "does not run the guest by hardware virtualisation" in " ".join(result.stdout.split())


def test_document_is_written_to_a_file(exitguard: Run, tmp_path: Path) -> None:
    path = tmp_path / "measurement.json"
    result = exitguard("measure", *_SHORT, "--format", "json", "--output", path)
    assert result.returncode in {0, 3}
    assert result.stdout == ""
    assert json.loads(path.read_text())["schema_version"] == 1


def test_host_id_is_the_one_that_an_audit_minted(exitguard: Run, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "host-id").write_text("7a1f3c3e-7d2b-4f0e-9b1a-5d6c7e8f9a0b\n")
    document = json.loads(exitguard("measure", *_SHORT, "--format", "json").stdout)
    assert (document["host_id"], document["host_id_provisional"]) == ("7a1f3c3e-7d2b-4f0e-9b1a-5d6c7e8f9a0b", False)


@pytest.mark.parametrize(
    "arguments",
    [("--seconds", "61"), ("--seconds", "0"), ("--iterations", "0"), ("--rounds", "1"), ("--loop", "mmio"), ("--cpu", "-1")],
)
def test_what_is_out_of_bounds_is_wrong_usage(exitguard: Run, arguments: tuple[str, ...]) -> None:
    result = exitguard("measure", *arguments)
    assert result.returncode == 64
    assert result.stdout == ""


def test_cpu_that_cannot_be_used_is_refused(exitguard: Run) -> None:
    result = exitguard("measure", "--cpu", "8191", "--format", "json")
    assert result.returncode == 3
    assert json.loads(result.stdout)["refused"]["next_step"]
