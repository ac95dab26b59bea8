"""The words for a kernel: its state with regard to the guard, and the evidence for it."""

from enum import StrEnum

from exitguard.model.record import Record


class KernelState(StrEnum):
    """Whether kvm_skip_emulated_instruction() does dead PMU work for a PMU-off guest."""

    GUARDED = "guarded"  # the call is guarded by kvm->arch.enable_pmu
    EQUIVALENT = "equivalent"  # the callee returns at once when nothing counts
    NOT_AFFECTED = "not_affected"  # there is no such call
    AFFECTED = "affected"
    UNKNOWN = "unknown"


class Body(StrEnum):
    """What an affected kernel does per skipped instruction: A walks every counter (5.17 - 6.8), B builds bitmaps (6.9 - 6.17)."""

    A = "A"
    B = "B"


class EvidenceMethod(StrEnum):
    """How a statement about a kernel was come by, strongest first."""

    MACHINE_CODE = "machine_code"
    BUILD_ID = "build_id"
    CHANGELOG = "changelog"
    SYMBOLS = "symbols"
    VERSION = "version"


class KernelStatement(Record):
    """What one method says of one kernel. A method may exclude states without settling on one: then `state` is None."""

    method: EvidenceMethod
    state: KernelState | None
    excludes: tuple[KernelState, ...] = ()
    body: Body | None = None
    source: str
    value: str


class InstalledVerdict(Record):
    """Whether booting an installed kernel would help a host whose running one does not; None where that cannot be told."""

    release: str
    helps: bool | None
    #: How that is known, or why not; stands after the release and a verb: `guarded by its machine code: ...`.
    how: str


class KernelVerdict(Record):
    """The merged judgement: the strongest statement that settles it, and every statement that contradicts it."""

    state: KernelState
    body: Body | None
    reason: str
    pending_reboot: bool
    #: The installed kernel that would help, where one is pending.
    pending_release: str | None = None
    #: Every installed kernel, oldest first.
    installed: tuple[InstalledVerdict, ...] = ()
    #: Of an affected kernel: whether the callee returns at once for a PMU-off guest on this host's vendor; None where that is not known.
    returns_at_once: bool | None = None
    #: Whether a live patch replaces the code that decides, so that what runs is another than the file says.
    live_patched: bool = False
    disagreements: tuple[str, ...] = ()
