"""Writes the completion of bash, zsh and fish, as Typer makes it: `completions.py DIRECTORY`.

That gets exitguard, _exitguard and exitguard.fish: the names that these shells look for in their own directories.
"""

import os
import subprocess
import sys
from pathlib import Path

_NAMES = {"bash": "exitguard", "zsh": "_exitguard", "fish": "exitguard.fish"}
# Typer's script only registers a function. Where zsh finds the file by its name, it loads it for the first completion, and expects that.
_COMPLETE_AT_ONCE = """
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
  _exitguard_completion "$@"
fi
"""
_LIMIT_SECONDS = 60


def completions() -> dict[str, str]:
    """Every script by the name of its file."""
    scripts = {name: _of_typer(shell) for shell, name in _NAMES.items()}
    scripts[_NAMES["zsh"]] += _COMPLETE_AT_ONCE
    return scripts


def _of_typer(shell: str) -> str:
    asked = {**os.environ, "_EXITGUARD_COMPLETE": f"source_{shell}"}
    command = [sys.executable, "-I", "-B", "-m", "exitguard"]
    answer = subprocess.run(command, env=asked, capture_output=True, text=True, timeout=_LIMIT_SECONDS, check=True)  # noqa: S603
    return answer.stdout.strip() + "\n"


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: completions.py DIRECTORY", file=sys.stderr)
        return 64
    directory = Path(arguments[0])
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in completions().items():
        (directory / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
