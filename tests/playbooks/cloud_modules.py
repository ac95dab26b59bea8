"""Modules of playbooks/library for a cloud, run as Ansible would: in this process, or by ansible-playbook."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import ansible.module_utils
import pytest
from ansible.module_utils.testing import patch_module_args

PLAYBOOKS = Path(__file__).resolve().parents[2] / "playbooks"


def load_module(name: str) -> ModuleType:
    """A module, with playbooks/module_utils beside Ansible's own."""
    ours = str(PLAYBOOKS / "module_utils")
    if ours not in ansible.module_utils.__path__:
        ansible.module_utils.__path__.append(ours)
    spec = importlib.util.spec_from_file_location(name, PLAYBOOKS / f"library/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_module(module: ModuleType, capsys: pytest.CaptureFixture[str], *, check: bool = False, **options: object) -> dict[str, Any]:
    """What it prints for Ansible."""
    with patch_module_args({**options, "_ansible_check_mode": check, "_ansible_diff": True}), pytest.raises(SystemExit):
        module.main()
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


def play(name: str, folder: Path, settings: Mapping[str, object], environment: Mapping[str, str], *options: str) -> Any:
    """A playbook on this machine."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "COV", "OS_"))}
    quiet = {"ANSIBLE_HOME": str(folder / "ansible"), "ANSIBLE_NOCOLOR": "1", "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default"}
    program = str(Path(sys.executable).parent / "ansible-playbook")
    settings = {"ansible_python_interpreter": sys.executable, "exitguard_become": False, **settings}
    words = [program, "-i", "localhost,", "-c", "local", "-e", json.dumps(settings), *options, str(PLAYBOOKS / f"{name}.yml")]
    everything = {**kept, **quiet, "LC_ALL": "C.UTF-8", **environment}
    return subprocess.run(
        words, cwd=folder, env=everything, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
    )


def steps_played(output: str) -> list[dict[str, Any]]:
    """The steps of the one result that has them, as -v prints it."""
    (line,) = (line for line in output.splitlines() if '"exitguard": {"steps"' in line)
    steps: list[dict[str, Any]] = json.loads(line[line.index("=> ") + 3 :])["exitguard"]["steps"]
    return steps
