"""The completion of each shell, as the package installs it, in that shell: it completes, and looks at nothing but the command line."""

import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from completions import main

WAIT_SECONDS = 60
# What is asked of the system while a shell's question is answered: file names opened, sockets, processes.
WATCHED = """
import json, os, runpy, sys
opened, reached = [], []
def watch(event, arguments):
    if event == "open":
        opened.append(str(arguments[0]))
    elif event in ("os.listdir", "os.scandir", "os.mkdir", "sqlite3.connect"):
        opened.append(str(arguments[0]))
    elif event.startswith("socket.") or event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork"):
        reached.append(event)
sys.argv = ["exitguard"]
sys.addaudithook(watch)
try:
    runpy.run_module("exitguard", run_name="__main__")
except SystemExit:
    pass
print(json.dumps([opened, reached, sorted(sys.modules)]), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("completions")
    assert main([str(directory)]) == 0
    return directory


@pytest.fixture
def shell_environment(environment: dict[str, str]) -> dict[str, str]:
    """With the command of this Python first, and a terminal."""
    return {**environment, "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}", "TERM": "xterm", "LC_ALL": "C.UTF-8"}


def needs(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")


def complete_in_bash(script: Path, environment: dict[str, str], *words: str) -> list[str]:
    """What bash would offer for the last of `words`: the function that the script registered, called as bash calls it."""
    program = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); $function "$1"; printf "%s\\n" "${COMPREPLY[@]}"'
    found = 'function=$(source "$1"; complete -p exitguard | sed -E "s/.* -F ([^ ]+) .*/\\1/");'
    command = ["bash", "--norc", "-c", found + program, "bash", script, *words]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=WAIT_SECONDS, check=True)
    assert answer.stderr == ""
    return answer.stdout.split()


def typed(command: list[str], before: str, keys: str, until: str, environment: dict[str, str]) -> str:
    """What a shell shows on a terminal: `before` is run, then `keys` are typed, until `until` is seen or time is over."""
    ours, its = os.openpty()
    shell = subprocess.Popen(["setsid", "--ctty", "--wait", *command], stdin=its, stdout=its, stderr=its, env=environment)
    os.close(its)
    try:
        os.write(ours, f"{before}; echo re''ady\n".encode())
        _shown(ours, "ready\r\n")
        os.write(ours, keys.encode())
        return _shown(ours, until)
    finally:
        os.close(ours)  # which ends the shell: its terminal has gone
        shell.kill()
        shell.wait()


def _shown(terminal: int, until: str) -> str:
    seen, end = "", time.monotonic() + WAIT_SECONDS
    while until not in seen and time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            seen += os.read(terminal, 4096).decode(errors="replace")
    return seen


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("rep",), {"report"}),
        (("ro",), {"rollout", "rollback"}),
        (("kernel", ""), {"inspect"}),
        (("report", "--only", "un"), {"unknown"}),
        (("audit", "--format", ""), {"table", "json"}),
        (("audit", "--sysroot", "/nonexistent", "--no-"), {"--no-store"}),
        (("report", ""), set()),  # and bash then offers files
        (("nonsense", "--for"), set()),
    ],
)
def test_bash_offers(scripts: Path, shell_environment: dict[str, str], words: tuple[str, ...], offered: set[str]) -> None:
    found = set(complete_in_bash(scripts / "exitguard", shell_environment, "exitguard", *words))
    assert found == offered or (words[0] == "nonsense" and "report" in found)


def test_bash_runs_nothing_that_was_typed(scripts: Path, shell_environment: dict[str, str], tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    for word in (f"$(touch {trap})", f"`touch {trap}`", f"; touch {trap};", "'unfinished", "*"):
        complete_in_bash(scripts / "exitguard", shell_environment, "exitguard", "explain", word, "--st")
    assert not trap.exists()


@pytest.mark.parametrize(("keys", "until"), [("exitguard rep\t", "exitguard report "), ("exitguard kernel in\t", "kernel inspect ")])
def test_tab_in_bash_completes(scripts: Path, shell_environment: dict[str, str], keys: str, until: str) -> None:
    assert until in typed(["bash", "--norc", "-i"], f"source {scripts}/exitguard", keys, until, shell_environment)


@pytest.mark.parametrize(
    ("keys", "until"),
    [
        ("exitguard rep\t", "exitguard report"),  # the first one of a session too
        ("exitguard ro\t\t", "Undo what a run changed"),
        ("exitguard nova audit --cloud-\t\t", "--cloud-facts"),
        ("exitguard nova audit --cl\t\t", "What `exitguard nova facts"),  # text in backquotes is text
    ],
)
def test_tab_in_zsh_completes(scripts: Path, shell_environment: dict[str, str], keys: str, until: str) -> None:
    needs("zsh")
    # zsh looks the file up by its name, as in /usr/share/zsh/vendor-completions.
    before = f"fpath=({scripts} $fpath); autoload -Uz compinit; compinit -u -D"
    assert until in typed(["zsh", "-f", "-i"], before, keys, until, shell_environment)


@pytest.mark.parametrize(
    ("line", "offered"), [("exitguard rep", {"report"}), ("exitguard rollout re", {"resume"}), ("exitguard report --group", {"--group-by"})]
)
def test_fish_offers(scripts: Path, shell_environment: dict[str, str], line: str, offered: set[str]) -> None:
    needs("fish")
    program = f"source {scripts}/exitguard.fish; complete -C '{line}'"
    answer = subprocess.run(
        ["fish", "--no-config", "-c", program], env=shell_environment, capture_output=True, text=True, timeout=WAIT_SECONDS, check=True
    )
    assert {found.partition("\t")[0] for found in answer.stdout.splitlines()} == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_looks_at_no_state_no_settings_no_libvirt_and_no_network(
    environment: dict[str, str], tmp_path: Path, shell: str
) -> None:
    asked = {
        "_EXITGUARD_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": "exitguard\nreport\n--o",
        "COMP_CWORD": "2",
        "_TYPER_COMPLETE_ARGS": "exitguard report --o",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    command = [sys.executable, "-c", WATCHED]
    result = subprocess.run(command, env=environment | asked, capture_output=True, text=True, timeout=WAIT_SECONDS, check=True)
    assert "--output" in result.stdout
    opened, reached, modules = json.loads(result.stderr)
    assert reached == []
    assert {"libvirt", "sqlalchemy", "openstack", "exitguard.config", "exitguard.store"} & set(modules) == set()
    assert opened
    # tmp_path is where home, settings and state are.
    assert [path for path in opened if path.startswith((str(tmp_path), "/etc/exitguard", "/var", "/run", "/sys"))] == []


def test_wrong_usage_is_64(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 64
    assert capsys.readouterr().err.startswith("usage:")
