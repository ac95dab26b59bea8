"""The HTML report in a real Chromium: no request, nothing on the console, usable by all, and nothing in it acts."""

import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from fleet_builder import fleet
from playwright.sync_api import Browser, Page, sync_playwright

from exitguard.report.formats.as_html import HtmlWriter
from exitguard.report.formats.writer import RuleText
from exitguard.report.overview import GroupKey
from exitguard.report.result import HostResult

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed here")
NOW = datetime(2026, 5, 22, 12, tzinfo=UTC)
WIDTHS = (360, 768, 1280)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # root runs these tests in CI
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium: Browser, written: Callable[..., str], tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """A page with these hosts. At the end: it asked for nothing but itself, and nothing was said on its console."""
    asked: list[str] = []
    said: list[str] = []
    path = tmp_path / "report.html"

    def open_page(results: list[HostResult], *, width: int = 1280, dark: bool = False, script: bool = True) -> Page:
        path.write_text(written(HtmlWriter, results, group_by=GroupKey.CHAIN, unread=("b.json: <b>no</b>",)))
        context = chromium.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", java_script_enabled=script
        )
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.goto(path.as_uri())
        return page

    yield open_page
    assert set(asked) <= {path.as_uri()}
    assert said == []


@pytest.fixture
def results() -> list[HostResult]:
    return [HostResult(report, stale=False, source="a") for report in fleet(30, 5, 1, NOW)]


def until(page: Page, condition: str) -> None:
    """Wait for it. The page's own policy keeps Playwright from polling in it."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"not within ten seconds: {condition}")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_window(
    opened: Callable[..., Page], results: list[HostResult], hosts: list[HostResult], width: int, *, dark: bool
) -> None:
    for each in (results, hosts):
        page = opened(each, width=width, dark=dark)
        page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        until(page, "[...document.querySelectorAll('.inside')].every((each) => each.querySelector('h3'))")
        assert page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_no_obstacle(opened: Callable[..., Page], results: list[HostResult], *, dark: bool) -> None:
    page = opened(results, dark=dark)
    page.locator("details.host summary").first.click()
    page.locator("details.problem summary").first.click()
    page.wait_for_selector(".inside h3")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_details_open_by_keyboard_and_have_findings_and_the_chain(opened: Callable[..., Page], results: list[HostResult]) -> None:
    page = opened(results)
    first = page.locator("details.host summary").first
    first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".inside h3")
    inside = page.locator("details.host .inside").first.inner_text()
    name = page.locator("details.host .name").first.inner_text()
    report = next(each.report for each in results if each.name == name)
    assert f"Findings: {len(report.findings)}" in inside
    assert all(domain.name in inside for domain in report.domains)


def test_problem_says_what_its_rule_demands_and_shows_the_instructions(
    opened: Callable[..., Page], hosts: list[HostResult], rules: dict[str, RuleText]
) -> None:
    page = opened(hosts, script=False)
    problem = page.locator("details.problem", has=page.get_by_text("RULE-1", exact=True)).first
    problem.locator("summary").click()
    said = problem.inner_text()
    assert f"{rules['RULE-1'].title}. {rules['RULE-1'].rationale}" in said
    assert "Instructions that decide" in said
    other = page.locator("details.problem", has=page.get_by_text("RULE-4", exact=True)).first
    other.locator("summary").click()
    assert "Instructions that decide" not in other.inner_text()


def test_host_s_findings_have_titles_and_instructions(opened: Callable[..., Page], results: list[HostResult]) -> None:
    page = opened(results)
    page.locator("details.host summary").first.click()
    page.wait_for_selector(".inside h3")
    page.evaluate("document.querySelectorAll('.inside details').forEach((each) => { each.open = true; })")
    assert "kvm_skip_emulated_instruction+0x2a" in page.locator("details.host .inside").first.inner_text()


def test_search_finds_hosts_by_name_domain_and_rule_and_says_how_many(opened: Callable[..., Page], results: list[HostResult]) -> None:
    page = opened(results)
    shown = page.locator("#shown")
    assert shown.inner_text() == "30 of 30 hosts shown"
    guest = results[7].report.domains[2].name
    for wanted, count in ((results[7].name, 1), (guest, 1), ("nothing has this name", 0)):
        page.locator("#search").fill(wanted)
        until(page, f"document.getElementById('shown').textContent === '{count} of 30 hosts shown'")
    page.locator("#search").fill("")
    page.locator("#state").select_option("unknown")
    unknown = sum(each.exit_code == 3 for each in results)
    until(page, f"document.getElementById('shown').textContent === '{unknown} of 30 hosts shown'")


def test_hostile_names_are_texts(opened: Callable[..., Page], hosts: list[HostResult]) -> None:
    page = opened(hosts)
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    until(page, "[...document.querySelectorAll('.inside')].every((each) => each.querySelector('h3'))")
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2
    assert "<script>alert(1)</script>" in page.locator("main").inner_text()
    assert page.locator("header li").inner_text() == "b.json: <b>no</b>"


def test_without_script_everything_but_single_hosts_is_there(opened: Callable[..., Page], results: list[HostResult]) -> None:
    page = opened(results, script=False)
    assert page.locator("h1").inner_text().lower() == "error"  # one report could not be read
    assert page.locator(".steps li").count() > 0
    assert page.locator("details.problem").count() > 0
    assert page.locator("noscript").inner_text().startswith("The details of single hosts need JavaScript")
    assert not page.locator(".filter").is_visible()
