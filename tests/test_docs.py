"""The guide cannot rot: links and anchors lead somewhere, every page is in the index, and every command line that it shows exists."""

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import typer
from markdown_it import MarkdownIt
from markdown_it.token import Token

from exitguard.cli.app import app
from exitguard.model.finding import Verdict
from exitguard.model.kernel import KernelState
from exitguard.model.pmu import ChainState, LinkName

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "bench/README.md", *DOCS.glob("*.md"), *ROOT.glob("tests/**/README.md")])
SVG = "{http://www.w3.org/2000/svg}"
#: A line of a shell that runs this program, whatever stands before it.
_COMMAND = re.compile(r"^\s*\$?\s*(?:\S*/)?exitguard\s+(.*)$")
_PARSER = MarkdownIt("commonmark").enable("table")


def tokens(page: Path) -> list[Token]:
    return _PARSER.parse(page.read_text())


def links(page: Path) -> Iterator[str]:
    for token in tokens(page):
        for inline in token.children or ():
            target = inline.attrGet("href") or inline.attrGet("src")
            if isinstance(target, str) and not re.match(r"[a-z]+:", target):
                yield target


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings: lower case, without punctuation, blanks as hyphens."""
    found: set[str] = set()
    parsed = tokens(page)
    for token, inside in itertools.pairwise(parsed):
        if token.type == "heading_open":
            text = "".join(part.content for part in inside.children or () if part.type in {"text", "code_inline"})
            found.add(re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_the_index() -> None:
    indexed = {link for link in links(DOCS / "README.md") if link.endswith(".md")}
    assert indexed == {page.name for page in DOCS.glob("*.md")} - {"README.md"}
    assert "docs/README.md" in set(links(ROOT / "README.md"))


# --- command lines ----------------------------------------------------------------------------------------------------------------


def shown_commands() -> Iterator[tuple[str, str]]:
    for page in (ROOT / "README.md", *sorted(DOCS.glob("*.md"))):
        if page.name == "cli.md":  # generated from the commands themselves
            continue
        for token in tokens(page):
            if token.type not in {"fence", "code_block"}:
                continue
            for line in token.content.splitlines():
                found = _COMMAND.match(line.split("  #")[0].split("   ")[0])
                if found is not None:
                    yield page.name, found[1].strip()


def problem_of(words: list[str]) -> str | None:
    """What of a command line does not exist; None where all of it does."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        if not words or words[0].startswith("-"):
            return None
        name = words.pop(0)
        if name not in command.commands:
            return f"no verb {name}"
        command = command.commands[name]
    known = {spelling for parameter in command.params for spelling in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    unknown = [word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in known]
    return f"no option {unknown[0]}" if unknown else None


def test_every_command_line_that_is_shown_exists() -> None:
    shown = list(shown_commands())
    assert len(shown) > 30
    wrong = []
    for page, line in shown:
        if re.search(r"[|·]", line.split(" --")[0]):  # a list of verbs in the README
            continue
        words = [word.strip("[].…") for word in shlex.split(line.split(" | ")[0].split(" > ")[0], comments=True)]
        problem = problem_of([word for word in words if word])
        if problem is not None:
            wrong.append(f"{page}: exitguard {line}: {problem}")
    assert wrong == []


@pytest.mark.parametrize(("line", "problem"), [("audit --formt json", "no option --formt"), ("adit", "no verb adit"), ("audit", None)])
def test_command_line_that_does_not_exist_would_be_found(line: str, problem: str | None) -> None:
    assert problem_of(line.split()) == problem


# --- concepts ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", [*ChainState, *KernelState, *Verdict], ids=str)
def test_every_state_and_verdict_is_explained(word: str) -> None:
    assert f"`{word}`" in (DOCS / "concepts.md").read_text()


def test_chain_states_stand_in_their_order() -> None:
    text = (DOCS / "concepts.md").read_text()
    places = [text.index(f"| `{state}` |") for state in ChainState]
    assert places == sorted(places)


def test_picture_of_the_chain_is_whole_and_says_what_it_shows() -> None:
    picture = ET.parse(DOCS / "images/chain.svg").getroot()  # noqa: S314 - our own file
    title, description = picture.find(f"{SVG}title"), picture.find(f"{SVG}desc")
    assert title is not None
    assert title.text
    assert description is not None
    assert description.text
    shown = " ".join("".join(text.itertext()) for text in picture.iter(f"{SVG}text"))
    assert [name for name in LinkName if name not in shown] == []
    assert "http" not in (DOCS / "images/chain.svg").read_text().replace(SVG[1:-1], "")
