"""The command as users run it: a process of its own, with a home, settings and a store of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from exitguard.cli.edge import run as run_here

Run = Callable[..., subprocess.CompletedProcess[str]]

_SYMBOLS_OF_5_10 = "ffffffff81000000 T _stext\nffffffff81e00000 T _etext\nffffffffc0000000 t kvm_skip_emulated_instruction\t[kvm]\n"
_SYMBOLS_OF_6_1 = _SYMBOLS_OF_5_10 + "ffffffffc0000100 t kvm_pmu_trigger_event\t[kvm]\n"
_DOMAIN = """<domain type='kvm'><name>web-1</name><uuid>6695eb01-f6a4-8304-79aa-97f2502e193f</uuid><memory>1024</memory>
<os><type arch='x86_64' machine='pc'>hvm</type></os><cpu mode='host-passthrough'/></domain>"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Nothing of the machine's own settings, state or terminal."""
    config = tmp_path / "config.yaml"
    config.write_text("")
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "LANG": "C.UTF-8",
        "EXITGUARD_CONFIG": str(config),
        "EXITGUARD_STATE_DIR": str(tmp_path / "state"),
        # A warning of the command itself is an error too.
        "PYTHONWARNINGS": "error",
    }


@pytest.fixture
def exitguard(environment: dict[str, str]) -> Run:
    """Run `exitguard ARGUMENTS...` to its end; `env` adds to or overrules the environment."""

    def run(*arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "exitguard", *map(str, arguments)],
            env=environment | (env or {}),
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=120,
            check=False,
        )

    return run


class Told(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def nova(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Told]:
    """Run `exitguard nova ARGUMENTS...` as the command does, in this process, which has it loaded already."""
    for name in [name for name in os.environ if name.startswith(("EXITGUARD_", "OS_"))]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def told(*arguments: str | Path, verb: str = "nova") -> Told:
        code = run_here([verb, *map(str, arguments)])
        return Told(code, *capsys.readouterr())

    return told


@pytest.fixture
def empty_host(tmp_path: Path) -> Path:
    """The file tree of a host of which nothing can be seen: exit code 3."""
    tree = tmp_path / "empty"
    tree.mkdir()
    return tree


@pytest.fixture
def compliant_host(tmp_path: Path) -> Path:
    """The file tree of a host that is older than the problem, without domains: exit code 0."""
    return _host(tmp_path / "compliant", "5.10.0-28-amd64", _SYMBOLS_OF_5_10)


@pytest.fixture
def failing_host(tmp_path: Path) -> Path:
    """The file tree of a host with a guest `web-1` that starts with its PMU on, by default: exit code 2."""
    tree = _host(tmp_path / "failing", "6.1.0-56-amd64", _SYMBOLS_OF_6_1)
    (tree / "etc/libvirt/qemu/web-1.xml").write_text(_DOMAIN)
    return tree


def _host(tree: Path, release: str, symbols: str) -> Path:
    files = {
        "proc/sys/kernel/osrelease": f"{release}\n",
        "proc/sys/kernel/hostname": "compute-17\n",
        "proc/kallsyms": symbols,
        "sys/module/kvm/parameters/enable_pmu": "Y\n",
        "etc/machine-id": "3d1219c7c4c5404aaa1f6d2a48adfda4\n",
    }
    for name, content in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(content)
    for folder in ("etc/libvirt/qemu", "run/libvirt/qemu", "sys/kernel/livepatch", f"lib/modules/{release}"):
        (tree / folder).mkdir(parents=True)
    return tree
