"""Samples: what moves. Never hashed, never compared across incarnations."""

from dataclasses import dataclass
from typing import Self
from uuid import UUID

from pydantic import Field

from exitguard.model.record import Observed, Record
from exitguard.model.time import UtcTime


class Incarnation(Record):
    """One run of one domain. Counters are compared only within one: a restart, a migration or a reboot begins another."""

    host_id: str
    domain_uuid: str
    boot_id: str
    #: Field 22 of /proc/<pid>/stat: clock ticks after boot at which the QEMU process started.
    qemu_start_ticks: int

    @property
    def key(self) -> str:
        """One line that names this incarnation and no other."""
        return f"{self.host_id}/{self.domain_uuid}/{self.boot_id}/{self.qemu_start_ticks}"

    @classmethod
    def from_key(cls, key: str) -> Self:
        """The inverse of `key`. Raises ValueError for anything else."""
        parts = key.split("/")
        if len(parts) != 4:  # noqa: PLR2004 - the four parts of the key above
            raise ValueError(f"{key!r} is not an incarnation: expected host id/domain uuid/boot id/start ticks")
        for part in parts[:3]:
            UUID(part)
        return cls(host_id=parts[0], domain_uuid=parts[1], boot_id=parts[2], qemu_start_ticks=int(parts[3]))


#: Among the counters: over how many vCPUs they are summed. A sum over others says nothing of what was made meanwhile.
VCPUS = "vcpus"


@dataclass(frozen=True)
class SkipReasons:
    """Reasons of exits by number, as the tracepoint kvm:kvm_exit has them; `sometimes` has none of `always`."""

    always: frozenset[int]
    sometimes: frozenset[int]


class SampledExits(Record):
    """What kvm:kvm_exit showed of one run for a short time."""

    exits: int
    #: Of these, how many skipped an instruction by their reason: at least, at most.
    skip_exits_low: int
    skip_exits_high: int
    milliseconds: int


class DomainSample(Record):
    uuid: str
    pid: int
    incarnation: Incarnation | None
    #: KVM's own counters since the guest's start, summed over its vCPUs, by KVM's names ("exits", "io_exits", ...), and `vcpus`, over
    #: how many; None where none were read, empty where the guest has none (TCG, an older QEMU).
    counters: dict[str, int] | None = None
    #: What was traced of it just before; None where nothing was.
    sampled: SampledExits | None = Field(default=None, exclude_if=lambda sampled: sampled is None)


class Samples(Record):
    """What was sampled of a host at one time."""

    observed_at: UtcTime
    #: CLOCK_BOOTTIME in nanoseconds at `observed_at`, so that durations survive a stepped clock.
    boottime_nanoseconds: int
    boot_time: Observed[UtcTime]
    #: Set where the counters of all running domains were asked for and told, even if there was none.
    boot_id: str | None = Field(default=None, exclude_if=lambda boot_id: boot_id is None)
    domains: tuple[DomainSample, ...] = ()
