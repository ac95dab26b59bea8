"""The man pages of the package, read by what reads man pages."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from command_tree import verbs
from man_pages import literal, main, man_pages, prose

TREE = {"-".join(verb.line.split()): verb for verb in verbs()}
HOSTILE = (
    ".so /etc/passwd",
    "'br",
    "\\fBbold\\fR \\n(.x",
    'a "quoted" word',
    "back\\slash",
    "-dash --option",
    "caf\u00e9 \u2026 \U0001f600",
    "...",
    "`~^'",
    ".",
)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("man")
    assert main([str(directory)]) == 0
    return directory


def needs(program: str, package: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed ({package})")


def rendered(page: Path, *, columns: int = 80) -> subprocess.CompletedProcess[str]:
    """As `man` shows it, on paper: without bold and underlines."""
    needs("man", "man-db")
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "MANWIDTH": str(columns), "HOME": str(page.parent)}
    command = ["man", "--warnings=w", "-E", "UTF-8", "-l", page]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)


def test_there_is_a_page_for_every_verb(pages: Path) -> None:
    assert {path.name for path in pages.iterdir()} == {f"{name}.1" for name in TREE}


@pytest.mark.parametrize("name", TREE)
def test_man_shows_all_of_it_without_a_warning(pages: Path, name: str) -> None:
    shown = rendered(pages / f"{name}.1")
    assert shown.stderr == ""
    words = " ".join(shown.stdout.split())
    verb = TREE[name]
    assert [spelling for option in verb.options for spelling in option.spellings if spelling not in words] == []
    for text in (*verb.description, *(option.what for option in verb.options), *(argument.what for argument in verb.arguments)):
        assert text.replace("`", "") in words
    for line in verb.examples:
        assert f"\n       {line}\n" in shown.stdout  # as it is typed, on a line of its own


def test_narrow_terminal_breaks_no_option_and_no_example(pages: Path) -> None:
    shown = rendered(pages / "exitguard-report.1", columns=40)
    assert "--group-by" in shown.stdout
    assert all(f" {line}\n" in shown.stdout for line in TREE["exitguard-report"].examples)


def test_mandoc_finds_nothing_but_that_no_date_is_told(pages: Path) -> None:
    needs("mandoc", "mandoc")
    found = subprocess.run(
        ["mandoc", "-Tlint", "-Wwarning", *sorted(pages.iterdir())], capture_output=True, text=True, timeout=60, check=False
    )
    assert [line for line in found.stdout.splitlines() if "missing date" not in line] == []


@pytest.mark.parametrize("name", TREE)
def test_whatis_finds_name_and_summary(pages: Path, name: str) -> None:
    needs("lexgrog", "man-db")
    found = subprocess.run(["lexgrog", pages / f"{name}.1"], capture_output=True, text=True, timeout=60, check=True).stdout
    assert found.strip().endswith(f'"{name} - {TREE[name].summary.replace("`", "")}"')


@pytest.mark.parametrize("text", HOSTILE)
def test_roff_prints_what_stands_in_a_help_and_obeys_none_of_it(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.1"
    page.write_text(f'.TH PAGE 1 "" "" ""\n.SH NAME\npage \\- what\n.SH TEXT\n{literal(text)}\n.PP\nEnd.\n', encoding="ascii")
    shown = rendered(page)
    assert shown.stderr == ""
    assert " ".join(shown.stdout.split()).partition("TEXT ")[2].startswith(f"{text} End.")


def test_code_is_bold_links_are_their_words_and_blanks_stay() -> None:
    assert prose("Run `plan --here` or see [the page](page.md).") == "Run \\fBplan \\-\\-here\\fR or see the page."
    assert prose("`a` `b`") == "\\fBa\\fR \\fBb\\fR"


def test_two_runs_write_the_same_bytes_and_no_date(monkeypatch: pytest.MonkeyPatch) -> None:
    first = man_pages()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    assert man_pages() == first
    assert {line for text in first.values() for line in text.splitlines() if line.startswith(".TH")} == {
        line for text in first.values() for line in text.splitlines() if re.match(r'\.TH EXITGUARD\S* 1 "" ', line)
    }


def test_wrong_usage_is_64(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 64
    assert capsys.readouterr().err.startswith("usage:")
