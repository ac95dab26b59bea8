"""The keys of simulated hosts: made once, kept in a file for who goes on with them, and known to nobody else."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from exitguard.fleet.keys import HostKey, new_host_key, parse_host_key
from exitguard.simulation.host import SimulatedHost

_FILE_MODE = 0o600
_LIMIT_BYTES = 1 << 28


class SimulationError(Exception):
    """Nothing more was simulated. A sentence for the operator: what, where, what was expected, what to do."""


@dataclass
class Keys:
    """By host id. Without a file they are gone with the process, and the hosts stay as they are."""

    file: Path | None
    _held: dict[str, HostKey] = field(default_factory=dict)

    @property
    def begun(self) -> bool:
        """Whether an earlier run made them."""
        return bool(self._held)

    def read(self) -> None:
        """Those of an earlier run. Raises SimulationError."""
        if self.file is None or not self.file.exists():
            return
        try:
            with self.file.open("rb") as file:
                lines = file.read(_LIMIT_BYTES).decode("ascii", "replace").splitlines()
        except OSError as error:
            raise _unusable(self.file, error) from error
        for line in lines:
            key = parse_host_key(line)
            if key is None:
                raise SimulationError(f"{self.file}: holds something else than keys. Expected the file of an earlier `exitguard simulate`.")
            self._held[key.host_id] = key

    def make(self, hosts: list[SimulatedHost]) -> None:
        """Keys of these hosts, on the disk before anybody hears of them. Raises SimulationError."""
        missing = [host.host_id for host in hosts if host.host_id not in self._held]
        made = {host_id: new_host_key(host_id) for host_id in missing}
        if self.file is not None and made:
            try:
                with os.fdopen(os.open(self.file, os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC, _FILE_MODE), "w") as file:
                    file.writelines(f"{key.text}\n" for key in made.values())
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise _unusable(self.file, error) from error
        self._held |= made

    def of(self, host: SimulatedHost) -> HostKey:
        return self._held[host.host_id]


def _unusable(file: Path, error: OSError) -> SimulationError:
    return SimulationError(f"{file}: {(error.strerror or str(error)).lower()}. Expected a place for the keys of simulated hosts.")
