"""A file for node_exporter's textfile collector, or for a push gateway: what the daemon exports of the newest report, by the same names.

For one host, without a label that names it: that is the scraper's to add. For several, each series has the label `host`, and sums over
the fleet follow. Nothing is labelled by domain.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from exitguard.model.finding import Verdict
from exitguard.model.pmu import ChainState
from exitguard.report.formats.writer import Setting
from exitguard.report.overview import WORST_FIRST, HostLine, Overview
from exitguard.report.result import HostResult
from exitguard.report.states import state_word
from exitguard.report.text import visible

_LIMIT_LABEL_CHARACTERS = 100
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})

Labels = tuple[tuple[str, str], ...]


@dataclass
class _Family:
    name: str
    description: str
    samples: list[tuple[Labels, float]] = field(default_factory=list)

    def text(self) -> str:
        lines = [f"# HELP {self.name} {self.description}", f"# TYPE {self.name} gauge"]
        lines += [f"{self.name}{_braced(labels)} {value!r}" for labels, value in self.samples]
        return "".join(f"{line}\n" for line in lines)


class PrometheusWriter:
    """All of it at the end: the samples of a family have to stand together."""

    def __init__(self, setting: Setting) -> None:
        del setting
        #: By host, rule and verdict.
        self._findings: list[dict[tuple[str, Verdict], int]] = []

    def begin(self) -> Iterator[str]:
        yield from ()

    def host(self, result: HostResult) -> Iterator[str]:
        counts: dict[tuple[str, Verdict], int] = {}
        for finding in result.report.findings:
            for verdict in Verdict:
                counts.setdefault((finding.rule, verdict), 0)
            counts[finding.rule, result.verdict_now(finding.verdict)] += 1
        self._findings.append(counts)
        yield from ()

    def end(self, overview: Overview) -> Iterator[str]:
        several = len(overview.hosts) != 1 or bool(overview.unread)
        for family in _of_hosts(overview.hosts, self._findings, several=several):
            yield family.text()
        if several:
            for family in _of_fleet(overview):
                yield family.text()


def _of_hosts(hosts: list[HostLine], findings: list[dict[tuple[str, Verdict], int]], *, several: bool) -> Iterable[_Family]:
    counted = _Family("exitguard_findings", "Findings of the newest report.")
    domains = _Family("exitguard_domains", "Domains of the newest report, by the state of their chain.")
    kernel = _Family("exitguard_host_kernel_info", "The running kernel, and its state by the policy.")
    code = _Family(
        "exitguard_compliance_exit_code", "What `exitguard report` exits with: 0 compliant, 1 error, 2 not compliant, 3 unknown or stale."
    )
    observed = _Family("exitguard_last_observation_timestamp_seconds", "When the host was last observed.")
    saved = _Family("exitguard_saved_cycles_per_second", "Cycles saved in the last hours of the ledger; absent where unquantified.")
    available = _Family("exitguard_available_cycles_per_second", "Cycles that the whole chain would save more; absent where unquantified.")
    shown = [_label(host.name) for host in hosts]
    names = Counter(shown)
    for host, name, counts in zip(hosts, shown, findings, strict=True):
        # One name may be that of several hosts, by itself or once it is cut; and a series may be there only once.
        of: Labels = (("host", host.name if names[name] == 1 else f"{host.id} {host.name}"),) if several else ()
        counted.samples += [((*of, ("rule", rule), ("verdict", verdict)), count) for (rule, verdict), count in sorted(counts.items())]
        domains.samples += [((*of, ("chain_state", state)), host.by_chain.get(state, 0)) for state in ChainState]
        kernel.samples.append(((*of, ("state", host.kernel_state), ("release", host.kernel_release or "")), 1))
        code.samples.append((of, host.exit_code))
        observed.samples.append((of, host.observed_at.timestamp()))
        for family, rate in ((saved, host.saved), (available, host.available)):
            if rate is not None:
                family.samples += [((*of, ("bound", "low")), rate.low), ((*of, ("bound", "high")), rate.high)]
    return (counted, domains, kernel, code, observed, saved, available)


def _of_fleet(overview: Overview) -> Iterable[_Family]:
    states: list[tuple[Labels, float]] = [
        ((("state", state_word(code)),), float(overview.by_exit_code[code])) for code in sorted(WORST_FIRST)
    ]
    yield _Family("exitguard_fleet_hosts", "Hosts by what is said of them; a stale one is not compliant.", states)
    yield _Family("exitguard_fleet_stale_hosts", "Hosts whose last audit is older than a day.", [((), float(overview.stale))])
    yield _Family("exitguard_fleet_unread_reports", "Reports that could not be read.", [((), float(len(overview.unread)))])


def _braced(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_label(value)}"' for name, value in labels) + "}"


def _label(text: str) -> str:
    return visible(text, limit_characters=_LIMIT_LABEL_CHARACTERS).translate(_ESCAPES)
