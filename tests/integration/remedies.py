"""Plans carried out on this machine's lab, each command a process of its own."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audits import CommandResult, command_environment
from libvirt_lab import LibvirtLab

from exitguard.store.journal import RunStore

_PROGRAM = Path(__file__).with_name("remedy_process.py")
_LIMIT_SECONDS = 240


@dataclass(frozen=True)
class RemedyHost:
    """One host: the lab's libvirt under recorded hardware, with a policy and a directory for runs."""

    lab: LibvirtLab
    home: Path
    policy: Path

    @property
    def remedy_dir(self) -> Path:
        return self.home / "remedy"

    def run(self, *words: str | Path, die_after: int | None = None, guarded: bool = False) -> CommandResult:
        """One command line to its end, however that comes."""
        with self.start(*words, die_after=die_after, guarded=guarded) as process:
            stdout, stderr = process.communicate(timeout=_LIMIT_SECONDS)
        assert "Traceback" not in stderr, stderr
        return CommandResult(process.returncode, stdout, stderr)

    def start(self, *words: str | Path, die_after: int | None = None, guarded: bool = False) -> "subprocess.Popen[str]":
        verb, *rest = map(str, words)
        options = [] if verb in ("approve", "rollout-status") else ["--connect", self.lab.uri, "--policy", str(self.policy)]
        if verb == "rollout":
            sub, *rest = rest
            verbs, options = [verb, sub], options if sub == "resume" else []
        else:
            verbs = [verb]
        if verb != "plan":
            options += ["--remedy-dir", str(self.remedy_dir)]
        program = [*(["--guarded"] if guarded else []), *(["--die-after", str(die_after)] if die_after is not None else [])]
        return subprocess.Popen(
            [sys.executable, str(_PROGRAM), *program, *verbs, *options, *rest],
            env=command_environment(self.home),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def plan(self, path: Path | None = None) -> dict[str, Any]:
        """A fresh plan, kept in `path` where one is given."""
        result = self.run("plan", "--format", "json", *(("--output", path) if path is not None else ()))
        assert result.exit_code == 0, result.stderr
        document: dict[str, Any] = json.loads(path.read_text() if path is not None else result.stdout)
        return document

    def journal(self, run_id: str) -> list[dict[str, Any]]:
        """The events of a run."""
        return [event.model_dump(mode="json") for event in RunStore(self.remedy_dir / "runs").read(run_id).events]

    def runs(self) -> list[str]:
        """Ids of all runs, oldest first."""
        return list(RunStore(self.remedy_dir / "runs").run_ids())

    def definitions(self) -> dict[str, str]:
        """Every persistent definition with its secrets, by name."""
        import libvirt  # noqa: PLC0415 - an optional package

        flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
        with self.lab.connection() as connection:
            return {domain.name(): domain.XMLDesc(flags) for domain in connection.listAllDomains(0) if domain.isPersistent()}


def kill_within(process: "subprocess.Popen[str]", seconds: float, chance: random.Random) -> str:
    """kill -9 after a time: the process itself as often as not, else one of those that it has started by then; the name of the victim."""
    time.sleep(seconds)
    family = [process.pid, *_descendants(process.pid)] if process.poll() is None else []
    victim = family[0] if family and chance.random() < 0.5 else chance.choice(family) if family else None
    name = ""
    if victim is not None:
        with contextlib.suppress(OSError):  # it has just ended by itself
            name = Path(f"/proc/{victim}/cmdline").read_text().replace("\0", " ")
            os.kill(victim, signal.SIGKILL)
    process.communicate(timeout=_LIMIT_SECONDS)
    return name


def _descendants(pid: int) -> list[int]:
    """Whatever a process has started, and they in turn, as far as they have not left it."""
    try:
        children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [each for child in children for each in (child, *_descendants(child))]


def remedies_policy(source: Path, target: Path, remedies: str) -> Path:
    """A policy with another `remedies:` section."""
    target.write_text(f"{source.read_text()}\nremedies: {remedies}\n")
    return target
