"""What it costs to run a playbook through exitguard: a process of its own, ansible-runner, variables in files, and a result for each host.

The peer is the program that anybody would call by hand, with the same play, inventory, settings and number of forks.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from measurement import Contest, Measurement, SkippedError

from exitguard.act.ansible import HostOutcome, PlaybookRun, run_playbook

_HOSTS = tuple(f"host-{number}" for number in range(1, 4))
_FORKS = 5
_PLAYBOOK = """
- hosts: all
  gather_facts: false
  tasks:
    - name: Look at a file
      ansible.builtin.stat: {path: /etc/os-release}
    - name: Copy a file
      ansible.builtin.copy: {content: "{{ inventory_hostname }}", dest: "{{ folder }}/{{ inventory_hostname }}", mode: "0600"}
    - name: Run a program
      ansible.builtin.command: {argv: ["true"]}
      changed_when: false
    - name: Look again
      ansible.builtin.slurp: {path: "{{ folder }}/{{ inventory_hostname }}"}
"""


@contextmanager
def _prepare() -> Iterator[Contest]:
    program = Path(sys.executable).with_name("ansible-playbook")
    if not program.exists() or find_spec("ansible_runner") is None:
        raise SkippedError(f"needs ansible-core and ansible-runner beside {sys.executable}: install exitguard[host] there")
    with tempfile.TemporaryDirectory(prefix="exitguard-bench-") as name:
        folder = Path(name)
        playbook, inventory, settings = folder / "play.yml", folder / "inventory.yml", folder / "ansible.cfg"
        playbook.write_text(_PLAYBOOK)
        hosts = "".join(f"    {host}: {{}}\n" for host in _HOSTS)
        local = f"{{ansible_connection: local, ansible_python_interpreter: {sys.executable}, folder: {folder}}}"
        inventory.write_text(f"all:\n  vars: {local}\n  hosts:\n{hosts}")
        settings.write_text("[defaults]\n")
        command = [str(program), "-i", str(inventory), "--forks", str(_FORKS), str(playbook)]
        # For both: the settings of whoever runs this are not what is measured.
        before = os.environ.get("ANSIBLE_CONFIG")
        os.environ["ANSIBLE_CONFIG"] = str(settings)
        versions = f"ansible-core {version('ansible-core')}, ansible-runner {version('ansible-runner')}"
        try:
            yield Contest(
                subject=lambda: _run(playbook, inventory, folder / "runs"),
                peer=lambda: subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True),
                note=f"{len(_HOSTS)} hosts of local connection, 4 tasks each; {versions}",
            )
        finally:
            if before is None:
                del os.environ["ANSIBLE_CONFIG"]
            else:
                os.environ["ANSIBLE_CONFIG"] = before


def _run(playbook: Path, inventory: Path, directory: Path) -> None:
    result = run_playbook(PlaybookRun(playbook, _HOSTS, inventory, forks=_FORKS, timeout_seconds=120), directory)
    if any(host.outcome is not HostOutcome.OK for host in result.hosts.values()):
        raise RuntimeError(f"the play did not end well: {result}")


MEASUREMENT = Measurement(
    name="playbook",
    what="a play through run_playbook, as a library call",
    peer="ansible-playbook of the same play, as a program",
    goal_ratio=1.15,
    pairs=9,
    prepare=_prepare,
)
