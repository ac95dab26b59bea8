"""One audit cycle: observe, judge, remember.

The order matters: the policy is loaded first, since nothing runs on a bad one; and what was observed is reported even where
it could not be stored, with a notice that says so.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from exitguard.audit.judge import judge
from exitguard.facts.collect import collect, collect_again, read_identity
from exitguard.facts.identity import provisional_host_id
from exitguard.facts.libvirt import Patience, target_of
from exitguard.facts.tree import HostTree
from exitguard.model.documents import AuditReport, FactsDocument, Observation
from exitguard.model.host import HostIdentity, Target, TargetKind
from exitguard.policy.load import load_rulebook
from exitguard.policy.parameters import NovaDefaultParameters
from exitguard.policy.schema import Rulebook

if TYPE_CHECKING:
    from exitguard.store.errors import StoreError
    from exitguard.store.host import HostStore


@dataclass(frozen=True)
class AuditRequest:
    """What to audit, by what, and where to remember it."""

    #: A libvirt URI; None for the default (qemu:///system), and for a sysroot.
    uri: str | None = None
    sysroot: Path | None = None
    #: Empty means the shipped policy.
    policy_files: tuple[Path, ...] = ()
    waiver_files: tuple[Path, ...] = ()
    #: Where the host id is, and the history. None: nothing is remembered, and the host id is provisional.
    state_dir: Path | None = None
    #: Whether what is found goes into the history.
    remember: bool = True
    #: How long one libvirt call may take before its domain counts as stuck.
    call_timeout_seconds: float = 5.0

    @property
    def target(self) -> Target:
        if self.sysroot is not None:
            return Target(kind=TargetKind.SYSROOT, sysroot=str(self.sysroot.absolute()))
        return target_of(self.uri)


@dataclass(frozen=True)
class AuditOutcome:
    """One cycle's result. `notices` are sentences for the operator: what was not stored, which id is provisional."""

    observation: Observation
    report: AuditReport
    notices: tuple[str, ...] = ()
    #: Why it was not stored, though there was a store to store it in.
    unstored: "StoreError | None" = None


@contextmanager
def without_collector() -> Iterator[None]:
    """Python's cycle collector off, for as long as one audit takes.

    Nearly everything that an audit makes is in use until its end, and none of it is cyclic garbage. To look through ever more of
    it, ever again, would take more time than all the rest on a host with thousands of domains.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@without_collector()
def observe(request: AuditRequest) -> Observation:
    """Facts and samples of the target, judged by nobody yet, remembered nowhere. Raises policy.load.PolicyError.

    Of this machine the host id is the one in the state directory where there is one: such facts can be joined with stored ones.
    """
    tree = _tree(request)
    rulebook = load_rulebook(request.policy_files, request.waiver_files)
    identity = _unstored_identity(request, tree)
    return _observe(request, rulebook, identity, tree, Patience(request.call_timeout_seconds))


def run_audit(request: AuditRequest) -> AuditOutcome:
    """Observe, judge by the policy, and store. Raises policy.load.PolicyError for a policy that nothing may run on."""
    rulebook = load_rulebook(request.policy_files, request.waiver_files)
    store, obstacle = open_store(request)
    with store or nullcontext():
        outcome = audit_into(store, request, rulebook, Patience(request.call_timeout_seconds))
    obstacles = [each for each in (obstacle, outcome.unstored) if each is not None]
    return replace(outcome, notices=(*outcome.notices, *(f"Not stored: {each}" for each in obstacles)))


@without_collector()
def audit_into(store: "HostStore | None", request: AuditRequest, rulebook: Rulebook, patience: Patience) -> AuditOutcome:
    """One audit with what its caller keeps open; without a store nothing is remembered, and the host id is provisional."""
    tree = _tree(request)
    notices: list[str] = []
    if store is None:
        identity = _unstored_identity(request, tree)
        machine_ids: tuple[str, ...] = ()
    else:
        identity = read_identity(request.target, tree, host_id=store.host_id, provisional=False)
        machine_ids = _machine_ids(store, identity, notices)
    observation = _observe(request, rulebook, identity, tree, patience)
    report = judge(observation.facts, rulebook, machine_ids_seen=machine_ids)
    unstored = None
    if store is not None:
        report, unstored = _record(store, observation, report)
    return AuditOutcome(observation, report, tuple(notices), unstored)


@without_collector()
def observe_again(facts: FactsDocument, uuids: frozenset[str], patience: Patience, *, observed_at: datetime) -> Observation:
    """The facts of this machine with these domains looked at anew. Raises facts.collect.DomainsUnseen where libvirt does not tell."""
    return collect_again(facts, HostTree(), uuids, patience=patience, observed_at=observed_at)


def _tree(request: AuditRequest) -> HostTree:
    return HostTree(request.sysroot.absolute()) if request.sysroot is not None else HostTree()


def _observe(request: AuditRequest, rulebook: Rulebook, identity: HostIdentity, tree: HostTree, patience: Patience) -> Observation:
    return collect(
        request.target,
        identity,
        tree,
        changelog_markers=rulebook.kernels.changelog_markers,
        patience=patience,
        observed_at=datetime.now(UTC),
        nova_default=_nova_default(rulebook),
    )


def _nova_default(rulebook: Rulebook) -> NovaDefaultParameters | None:
    """What the policy says of a vendor's option in nova.conf; of several rules that do, the first."""
    named = (rule.parameters for rule in rulebook.policy.rules)
    return next((parameters for parameters in named if isinstance(parameters, NovaDefaultParameters)), None)


def _unstored_identity(request: AuditRequest, tree: HostTree) -> HostIdentity:
    """The identity of a host that is looked at and not remembered: that of its state directory where there is one, else provisional."""
    from exitguard.store.errors import StoreError
    from exitguard.store.state_dir import read_host_id

    identity = _provisional_identity(request.target, tree)
    if request.state_dir is not None and request.target.kind in (TargetKind.LOCAL, TargetKind.EMBEDDED):
        with suppress(StoreError):  # no store yet: the id stays provisional, and says so
            return identity.model_copy(update={"id": read_host_id(request.state_dir), "provisional": False})
    return identity


def _provisional_identity(target: Target, tree: HostTree) -> HostIdentity:
    identity = read_identity(target, tree, host_id="", provisional=True)
    # A remote host shows nothing to derive an id from but the way that leads to it.
    hostname = target.uri if target.kind is TargetKind.REMOTE else identity.hostname.value
    return identity.model_copy(update={"id": provisional_host_id(identity.machine_id.value, hostname)})


def open_store(request: AuditRequest) -> "tuple[HostStore | None, StoreError | None]":
    """The store of a request, or None and why: an audit that cannot be remembered is still worth telling. The caller closes it."""
    if request.state_dir is None or not request.remember:
        return None, None
    from exitguard.store.errors import StoreError
    from exitguard.store.host import HostStore

    try:
        store = HostStore.open(request.state_dir, now=datetime.now(UTC))
    except StoreError as error:
        return None, error
    remembered = _remembered_target(store)
    if remembered is None or remembered == request.target:
        return store, None
    store.close()
    kept, asked = (target.uri or target.sysroot for target in (remembered, request.target))
    sentence = f"{request.state_dir} keeps the history of {kept}. Give {asked} a --state-dir of its own."
    return None, StoreError(sentence, reason="the history of another target")


def _remembered_target(store: "HostStore") -> Target | None:
    """Whose history the store keeps; None for a new one, and for one that cannot be read (record() will say so, and note the gap)."""
    from exitguard.store.errors import StoreError

    try:
        return store.target()
    except StoreError:
        return None


def _machine_ids(store: "HostStore", identity: HostIdentity, notices: list[str]) -> tuple[str, ...]:
    from exitguard.store.errors import StoreError

    if identity.machine_id.value is None:
        return ()
    try:
        return store.machine_ids_seen(identity.machine_id.value, datetime.now(UTC))
    except StoreError as error:
        notices.append(f"Whether this store was copied from another machine is not known: {error}")
        return ()


def _record(store: "HostStore", observation: Observation, report: AuditReport) -> "tuple[AuditReport, StoreError | None]":
    from exitguard.store.errors import StoreError

    try:
        return store.record(observation, report), None
    except StoreError as error:
        return report, error
