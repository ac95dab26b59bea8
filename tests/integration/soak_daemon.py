"""A daemon under faults for as long as you like: `python tests/integration/soak_daemon.py [--minutes 30] [--seed N]`, as root.

A real libvirtd of its own, guests that come and go, and every few seconds something bad: libvirtd killed or stopped, a QEMU stopped,
the policy garbage, the store's file system full or its database gone, audits by hand at the same time. After it all the daemon must
be the same process, with no more threads, files and memory than at the beginning, know what an audit by hand finds, and show every
gap. Prints what it did and saw, and exits with 1 where something was leaked or lost.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from audits import admit_tcg
from domain_documents import guest_xml
from libvirt_lab import LibvirtLab, open_lab, why_no_lab
from running_daemon import RunningDaemon, running_daemon

from exitguard.cycle import AuditRequest, run_audit
from exitguard.store.errors import StoreError
from exitguard.store.host import HostStore

_START = datetime(2026, 1, 1, tzinfo=UTC)
_NAMES = tuple(f"soak-{number}" for number in range(12))
_STORE_MIB = 24
_SETTLE_SECONDS = 45.0
#: What a heap may have grown by without being a leak: it depends on what happened to be in flight.
_GROWTH_MIB = 12.0


@dataclass
class Soak:
    lab: LibvirtLab
    daemon: RunningDaemon
    policy: Path
    good_policy: bytes
    random: random.Random
    done: Counter[str] = field(default_factory=Counter)

    # --- ordinary life ----------------------------------------------------------------------------------------------------------

    def change_a_guest(self) -> None:
        name = self.random.choice(_NAMES)
        import libvirt  # noqa: PLC0415 - an optional package

        with contextlib.suppress(libvirt.libvirtError), self.lab.connection() as connection:
            found = {domain.name(): domain for domain in connection.listAllDomains(0)}
            match self.random.choice(("define", "start", "stop", "undefine")):
                case "define":
                    connection.defineXML(guest_xml(name, mode="maximum", pmu=self.random.choice(("on", "off", "absent"))))
                case "start" if name in found and not found[name].isActive():
                    found[name].createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
                case "stop" if name in found and found[name].isActive():
                    found[name].destroy()
                case "undefine" if name in found and not found[name].isActive():
                    found[name].undefine()
                case _:
                    pass

    # --- faults -----------------------------------------------------------------------------------------------------------------

    def kill_libvirtd(self) -> None:
        self.lab.kill_daemon()
        time.sleep(self.random.uniform(0, 3))
        self.lab.ensure_daemon()

    def stop_libvirtd(self) -> None:
        with self.lab.stopped_daemon():
            time.sleep(self.random.uniform(1, 25))

    def stop_a_qemu(self) -> None:
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and _runs_a_guest(path)]
        if pids:
            pid = self.random.choice(pids)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                time.sleep(self.random.uniform(1, 10))
                os.kill(pid, signal.SIGCONT)

    def garbage_policy(self) -> None:
        self.policy.write_bytes(self.random.randbytes(400))
        self.daemon.reload()
        time.sleep(2)
        self.policy.write_bytes(self.good_policy)
        self.daemon.reload()

    def full_disk(self) -> None:
        filler = self.daemon.state_dir / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(b"\0" * 65536)
                file.flush()
        self.daemon.reload()
        time.sleep(self.random.uniform(2, 10))
        filler.unlink(missing_ok=True)
        self.daemon.reload()

    def lose_the_database(self) -> None:
        for path in self.daemon.state_dir.glob("host.sqlite*"):
            path.unlink(missing_ok=True)
        self.daemon.reload()

    def audit_by_hand(self) -> None:
        command = [sys.executable, "-m", "exitguard", "audit", "--config", str(self.daemon.config), "--format", "json"]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120, check=False)

    def reload_storm(self) -> None:
        for _ in range(20):
            self.daemon.reload()
            time.sleep(0.02)

    # --- the whole --------------------------------------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        faults: list[Callable[[], None]] = [
            self.kill_libvirtd,
            self.stop_libvirtd,
            self.stop_a_qemu,
            self.garbage_policy,
            self.full_disk,
            self.lose_the_database,
            self.audit_by_hand,
            self.reload_storm,
        ]
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for _ in range(self.random.randint(1, 25)):
                self.change_a_guest()
                self.done["guest changes"] += 1
            fault = self.random.choice(faults)
            fault()
            self.done[fault.__name__] += 1
            time.sleep(self.random.uniform(0, 4))
            assert self.daemon.process.poll() is None, self.daemon.log.read_text()[-5000:]

    def figures(self) -> dict[str, float]:
        """Threads, open files and memory (MiB) of the daemon once it rests."""
        self.lab.ensure_daemon()
        audits = len(self.daemon.named("audit.finished", stored=True))
        self.daemon.reload()
        self.daemon.wait_for("an audit to rest after", lambda: len(self.daemon.named("audit.finished", stored=True)) > audits)
        time.sleep(_SETTLE_SECONDS)
        status = Path(f"/proc/{self.daemon.pid}/status").read_text()
        memory = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")) / 1024
        return {"threads": self.daemon.threads(), "files": self.daemon.descriptors(), "memory_mib": round(memory, 1)}


def _runs_a_guest(process: Path) -> bool:
    try:
        return b"guest=soak-" in (process / "cmdline").read_bytes()
    except OSError:
        return False


def _differences(soak: Soak) -> list[str]:
    """What the daemon's memory says differently from an audit by hand."""
    daemon = soak.daemon
    request = AuditRequest(uri=soak.lab.uri, policy_files=(soak.policy,))
    deadline = time.monotonic() + 90
    while True:
        now = run_audit(request).report
        with contextlib.suppress(StoreError), HostStore.open(daemon.state_dir, now=datetime.now(UTC), read_only=True) as store:
            stored = store.report()
            told = {} if stored is None else {domain.name: (domain.chain.state, domain.pmu) for domain in stored.domains}
            seen = {domain.name: (domain.chain.state, domain.pmu) for domain in now.domains}
            if told == seen:
                return []
            if time.monotonic() > deadline:
                return [
                    f"{name}: stored {told.get(name)}, seen {seen.get(name)}"
                    for name in told.keys() | seen
                    if told.get(name) != seen.get(name)
                ]
        time.sleep(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    missing = why_no_lab()
    if missing is not None:
        print(f"No soak here: {missing}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="exitguard-soak-") as name, open_lab() as lab:
        folder = Path(name)
        state_dir = folder / "run" / "state"
        state_dir.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_STORE_MIB}m,mode=0750", "tmpfs", str(state_dir)], check=True)
        try:
            return _soak(folder, lab, arguments.minutes * 60, arguments.seed)
        finally:
            subprocess.run(["umount", "--lazy", str(state_dir)], check=False)


def _soak(folder: Path, lab: LibvirtLab, seconds: float, seed: int) -> int:
    policy = admit_tcg(folder)
    settings = {
        "connect": lab.uri,
        "policy_files": [str(policy)],
        "audit_interval_seconds": 60,
        "sample_interval_seconds": 10,
        "call_timeout_seconds": 1,
        "database_limit_mib": 16,
        "metrics_textfile": str(folder / "exitguard.prom"),
    }
    with running_daemon(folder / "run", settings, watchdog_seconds=60) as daemon:
        soak = Soak(lab, daemon, policy, policy.read_bytes(), random.Random(seed))  # noqa: S311 - repeatable, not secret
        daemon.wait_for_event("audit.finished", job="audit")
        soak.run(min(90.0, seconds / 4))  # everything has happened once: libraries are loaded, caches are warm
        before = soak.figures()
        soak.run(seconds)
        after = soak.figures()
        different = _differences(soak)
        with HostStore.open(daemon.state_dir, now=datetime.now(UTC), read_only=True) as store:
            gaps = len(store.gaps(_START))
        failed = daemon.named("job.failed")
        code = daemon.end()
    print(f"seed {seed}, {seconds / 60:g} minutes: {dict(soak.done)}")
    print(f"before {before}\nafter  {after}\ngaps in the present database {gaps}, jobs failed {len(failed)}, exit code {code}")
    faults = [f"{name} grew" for name in ("threads", "files") if after[name] > before[name]]
    faults += ["memory grew"] if after["memory_mib"] > before["memory_mib"] + _GROWTH_MIB else []
    faults += [f"a job failed: {each}" for each in failed]
    faults += different
    faults += ["the end was not clean"] if code != 0 else []
    print("\n".join(faults) or "nothing leaked, nothing lost")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
