"""The `remedies:` of a policy: what may be done about failures, how, when, and after whose word."""

from itertools import pairwise
from typing import Annotated, Self

from pydantic import Field, model_validator

from exitguard.model.plan import Approval, Mode, Remedy
from exitguard.policy.part import (
    CRON_PATTERN,
    PACKAGE_PATTERN,
    PACKAGE_VERSION_PATTERN,
    RELEASE_PATTERN,
    TIME_ZONE_PATTERN,
    Line,
    PolicyPart,
    fault,
    refuse_repeats,
)
from exitguard.policy.window import refuse_bad_window

_ALL_HOSTS = 100
ALL_NAMES = "*"


class Window(PolicyPart):
    """A maintenance window that comes again: steps begin only inside one."""

    start: str = Field(
        pattern=CRON_PATTERN, max_length=100, description="when it opens, as cron's five fields: minute hour day month weekday"
    )
    duration_minutes: int = Field(ge=5, le=7 * 24 * 60)
    time_zone: str = Field(
        default="UTC", pattern=TIME_ZONE_PATTERN, max_length=64, description="a name of the IANA database, such as Europe/Berlin"
    )

    @model_validator(mode="after")
    def _opens(self) -> Self:
        try:
            refuse_bad_window(self.start, self.time_zone)
        except ValueError as error:
            raise fault(("start",), str(error)) from None
        return self


class Package(PolicyPart):
    """A package in exactly one version, as the package manager names both."""

    name: str = Field(pattern=PACKAGE_PATTERN, max_length=128)
    version: str = Field(pattern=PACKAGE_VERSION_PATTERN, max_length=128)


class KernelPin(PolicyPart):
    """The kernel that hosts of one distribution are to run. A package that does not hold a guarded or equivalent kernel is refused."""

    distribution: Line = Field(description="ID of os-release(5), such as debian")
    distribution_version: Line = Field(description="VERSION_ID of os-release(5), such as '12'")
    release: str = Field(pattern=RELEASE_PATTERN, max_length=128, description="what `uname -r` says of that kernel")
    packages: tuple[Package, ...] = Field(min_length=1, max_length=16)


class QemuPin(PolicyPart):
    """The QEMU that hosts of one distribution are to have."""

    distribution: Line = Field(description="ID of os-release(5), such as debian")
    distribution_version: Line = Field(description="VERSION_ID of os-release(5), such as '12'")
    packages: tuple[Package, ...] = Field(min_length=1, max_length=32)
    migration_checked: bool = Field(
        default=False,
        description="the operator's word that every host to which these guests migrate gets a QEMU that treats pmu=off alike: else a "
        "migration would switch the PMU of a running guest",
    )


class NovaRemedies(PolicyPart):
    """What may be changed in an OpenStack cloud, and with which command."""

    flavors: tuple[Line, ...] = Field(
        default=(ALL_NAMES,), max_length=10_000, description="names or ids of the flavors that may get hw:pmu=false; '*' stands for all"
    )
    images: tuple[Line, ...] = Field(
        default=(), max_length=10_000, description="names or ids of images that may get hw_pmu=false; '*' stands for all public ones"
    )
    refused_boots_accepted: bool = Field(
        default=False,
        description="the operator's word that new instances may be refused whose image asks for a PMU and whose flavor would say no, or "
        "the other way round",
    )
    nova_manage: tuple[Line, ...] = Field(
        default=("nova-manage",),
        min_length=1,
        max_length=64,
        description="the command that changes stored image properties, word by word, such as [docker, exec, nova_api, nova-manage]",
    )


class Rollout(PolicyPart):
    """How a plan goes over many hosts: a canary first, then ever larger parts."""

    canary: tuple[Line, ...] = Field(
        default=(), max_length=64, description="host ids or exact host names that go first; empty: one host, by name"
    )
    percentages: tuple[Annotated[int, Field(ge=1, le=100)], ...] = Field(
        default=(5, 25, 100),
        min_length=1,
        max_length=16,
        description="how much of the hosts is done after each wave that follows the canary",
    )
    max_hosts_in_flight: int = Field(default=20, ge=1, le=500)
    failure_budget: int = Field(default=0, ge=0, le=1000, description="how many hosts may fail before everything stops")
    step_timeout_seconds: int = Field(default=300, ge=10, le=7200, description="how long one playbook may take on a host")
    pause_between_waves_seconds: int = Field(default=0, ge=0, le=7 * 24 * 3600)
    automatic_rollback: bool = Field(
        default=False, description="undo what a host that fails its check afterwards had changed, where that disturbs nobody and is exact"
    )

    @model_validator(mode="after")
    def _rising_to_all(self) -> Self:
        for index, (earlier, later) in enumerate(pairwise(self.percentages), start=1):
            if later <= earlier:
                raise fault(("percentages", index), f"expected more than the {earlier} before it, found {later}")
        if self.percentages[-1] != _ALL_HOSTS:
            raise fault(
                ("percentages", len(self.percentages) - 1), f"expected 100, so that every host has a wave, found {self.percentages[-1]}"
            )
        return self


class Remedies(PolicyPart):
    """What may be done about failures, how, and after whose word."""

    mode: Mode = Field(
        default=Mode.OPPORTUNISTIC,
        description="report: nothing; opportunistic: only what disturbs nobody, in force when a guest's owner restarts it; windowed: "
        "inside a maintenance window only",
    )
    approval: Approval = Field(default=Approval.REQUIRED, description="whether a person has to name a plan's hash before it is carried out")
    allowed: tuple[Remedy, ...] = Field(default=(Remedy.DOMAIN_PMU_OFF,), description="the remedies that may be planned")
    windows: tuple[Window, ...] = Field(default=(), max_length=64)
    rollout: Rollout = Rollout()
    kernels: tuple[KernelPin, ...] = Field(default=(), max_length=64)
    qemus: tuple[QemuPin, ...] = Field(default=(), max_length=64)
    nova: NovaRemedies = NovaRemedies()
    opted_out_guests_stay_away: bool = Field(
        default=False,
        description="the operator's word that no guest whose owner asked for a PMU is placed on or migrated to these hosts: "
        "kvm_enable_pmu_off would take it away silently",
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.mode is Mode.WINDOWED and not self.windows:
            raise fault(("windows",), "expected at least one window: mode windowed acts inside windows only")
        for field, pins in (("kernels", self.kernels), ("qemus", self.qemus)):
            refuse_repeats(field, "distribution_version", (f"{pin.distribution} {pin.distribution_version}" for pin in pins))
        return self
