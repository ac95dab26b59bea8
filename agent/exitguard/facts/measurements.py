"""Measurements of exits that operators give, from files: what `exitguard measure --format json` wrote, on this host or on one like it."""

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from exitguard.model.measurement import Measurement

#: A measurement of all loops with a thousand rounds each makes some 300 kB.
_LIMIT_BYTES = 4 << 20
_EXPECTED = "a file of `exitguard measure --format json`"


class MeasurementError(Exception):
    """A file that holds no measurement. A sentence for the operator: what, where, what was expected, what to do."""


def read_measurements(paths: Iterable[Path]) -> tuple[tuple[Measurement, ...], tuple[str, ...]]:
    """The measurements in the files, in their order, and a sentence for each file that holds none. A refused one measures nothing."""
    found: list[Measurement] = []
    problems: list[str] = []
    for path in paths:
        try:
            measurement = read_measurement(path)
        except MeasurementError as error:
            problems.append(str(error))
            continue
        if measurement.refused is not None:
            problems.append(
                f"{path}: says that nothing could be measured: {measurement.refused.reason}. Leave it out of measurement_files."
            )
            continue
        found.append(measurement)
    return tuple(found), tuple(problems)


def read_measurement(path: Path) -> Measurement:
    """The measurement in a file. Raises MeasurementError."""
    try:
        content = _read(path)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise MeasurementError(
            f"{path}: {reason}. Expected a file of `exitguard measure --format json` that this user may read."
        ) from error
    if len(content) > _LIMIT_BYTES:
        raise MeasurementError(f"{path}: expected at most {_LIMIT_BYTES} bytes, found more. Measure again with fewer rounds.")
    try:
        return Measurement.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise MeasurementError(
            f"{path}: no measurement: {where}: {first['msg']}. Expected {_EXPECTED} of this version or an older one."
        ) from error


def _read(path: Path) -> bytes:
    # Without O_NONBLOCK, opening a FIFO would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(22, "not a regular file")
        return file.read(_LIMIT_BYTES + 1)
