"""Files of measurements: what stands in them, or a sentence for each that is none."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from exitguard.facts.measurements import MeasurementError, read_measurement, read_measurements
from exitguard.model.measurement import Measurement, Refused
from exitguard.model.record import unseen

ID = "7c0a2f7e-98a5-4a83-9d0f-8a5b8f6c2d11"


def measurement(**other: object) -> Measurement:
    values: dict[str, object] = {
        "observed_at": datetime(2026, 11, 1, tzinfo=UTC),
        "host_id": ID,
        "host_id_provisional": False,
        **{
            name: unseen("a test", "not looked at")
            for name in ("kernel_release", "kvm_build_id", "boot_id", "cpu", "mitigations", "enable_pmu", "live_patches")
        },
        "measured_on": 1,
        "tsc_kilohertz": 2_000_000,
        "seconds": 1.0,
        "loops": (),
        "checks": (),
        "caveats": (),
        "refused": None,
    }
    return Measurement(**{**values, **other})  # type: ignore[arg-type]


def test_measurement_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text(measurement().model_dump_json())
    assert read_measurement(path) == measurement()


def test_refused_measurement_is_told_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text(measurement(refused=Refused(reason="KVM is software", next_step="measure elsewhere")).model_dump_json())
    found, problems = read_measurements([path])
    assert found == ()
    assert problems == (f"{path}: says that nothing could be measured: KVM is software. Leave it out of measurement_files.",)


def test_bad_file_takes_no_good_one_with_it(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(measurement().model_dump_json())
    bad.write_text("{}")
    found, problems = read_measurements([bad, good])
    assert len(found) == 1
    assert len(problems) == 1
    assert "bad.json: no measurement: observed_at" in problems[0]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[" * 100_000, "no measurement"),
        (" " * (5 << 20), "at most"),
        (json.dumps({"schema_version": 9}), "no measurement"),
        ("\0", "no measurement"),
    ],
    ids=["nested", "large", "other version", "zero byte"],
)
def test_hostile_file_is_refused_in_a_sentence(tmp_path: Path, content: str, why: str) -> None:
    path = tmp_path / "m.json"
    path.write_text(content)
    with pytest.raises(MeasurementError, match=why):
        read_measurement(path)


def test_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MeasurementError, match="not a regular file"):
        read_measurement(tmp_path / "pipe")


def test_missing_file_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match=r"no such file or directory\. Expected a file of `exitguard measure"):
        read_measurement(tmp_path / "absent.json")
