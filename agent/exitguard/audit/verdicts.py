"""Which verdict a rule about domains reaches: from the chain's state, its links, and who asked for what. Pure and total.

docs/verdicts.md is generated from these functions.
"""

from exitguard.audit.chain import ChainInput, Run
from exitguard.model.finding import Verdict
from exitguard.model.kernel import KernelState
from exitguard.model.pmu import Chain, ChainState, LinkName, PmuSetting, Tri

#: States in which the PMU-off rules do not apply: there is nothing to save, or somebody wants the PMU.
_OUTSIDE = frozenset({ChainState.NOT_APPLICABLE, ChainState.MOOT, ChainState.OPTED_OUT, ChainState.OPT_OUT_VIOLATED})

_OF_LINK = {Tri.YES: Verdict.PASS, Tri.NO: Verdict.FAIL, Tri.UNKNOWN: Verdict.UNKNOWN}

_OF_KERNEL = {
    KernelState.GUARDED: Verdict.PASS,
    KernelState.EQUIVALENT: Verdict.PASS,
    KernelState.NOT_AFFECTED: Verdict.PASS,
    KernelState.AFFECTED: Verdict.FAIL,
    KernelState.UNKNOWN: Verdict.UNKNOWN,
}


def kernel_guard(state: KernelState) -> Verdict:
    """HOST-KERNEL-GUARD."""
    return _OF_KERNEL[state]


def pmu_persistent(chain: Chain, given: ChainInput) -> Verdict:
    """DOM-PMU-PERSISTENT: the definition of the next start."""
    if chain.state in _OUTSIDE or given.persistent is PmuSetting.NONE or given.asked_on is Tri.YES:
        return Verdict.NOT_APPLICABLE
    return _of_link(chain, LinkName.DEFINED, given)


def pmu_live(chain: Chain, given: ChainInput) -> Verdict:
    """DOM-PMU-LIVE: this run."""
    if chain.state in _OUTSIDE or given.run is Run.NONE or given.asked_on is Tri.YES:
        return Verdict.NOT_APPLICABLE
    return _of_link(chain, LinkName.RUNNING, given)


def pmu_effective(state: ChainState, asked_on: Tri) -> Verdict:
    """DOM-PMU-EFFECTIVE: the whole chain of a domain that runs. Who asked for the PMU is judged by DOM-OPT-OUT-HONOURED."""
    if state in _OUTSIDE or state is ChainState.NOT_RUNNING or asked_on is Tri.YES:
        return Verdict.NOT_APPLICABLE
    if state is ChainState.EFFECTIVE:
        return Verdict.PASS
    return Verdict.UNKNOWN if state is ChainState.UNKNOWN else Verdict.FAIL


def opt_out_honoured(chain: Chain, given: ChainInput) -> Verdict:
    """DOM-OPT-OUT-HONOURED: who asked for the PMU gets it. A stopped domain is judged by what its next start would get."""
    if chain.state is ChainState.NOT_APPLICABLE or given.asked_on is Tri.NO:
        return Verdict.NOT_APPLICABLE
    if given.asked_on is Tri.UNKNOWN:
        return Verdict.UNKNOWN
    if given.run is Run.NONE:
        if given.host_clears is Tri.YES:
            return Verdict.FAIL
        return Verdict.PASS if _link(chain, LinkName.DEFINED) is Tri.NO else Verdict.UNKNOWN
    if chain.state is ChainState.OPT_OUT_VIOLATED:
        return Verdict.FAIL
    return Verdict.PASS if _link(chain, LinkName.RUNNING) is Tri.NO else Verdict.UNKNOWN


def _of_link(chain: Chain, name: LinkName, given: ChainInput) -> Verdict:
    verdict = _OF_LINK[_link(chain, name)]
    if verdict is Verdict.FAIL and Tri.UNKNOWN in (given.asked_on, given.applicable):
        return Verdict.UNKNOWN  # a PMU that somebody may have asked for is no failure
    return verdict


def _link(chain: Chain, name: LinkName) -> Tri:
    return next(link.holds for link in chain.links if link.name is name)
