"""What decides is pure: import-linter keeps the modules of I/O out (pyproject.toml); this finds the calls that need no such import."""

import ast
from pathlib import Path

import pytest

import exitguard

PACKAGE = Path(exitguard.__file__).parent
PURE_PACKAGES = ("model", "policy", "audit", "savings", "remedy")
#: The edge of the policy.
EDGES = {"policy/load.py"}

IMPURE_FUNCTIONS = {"open", "input", "print", "breakpoint", "__import__"}
#: The clock (datetime.now, date.today ...) and chance (uuid.uuid1, uuid.uuid4), however the object before the dot is called.
IMPURE_METHODS = {"now", "utcnow", "today", "uuid1", "uuid4", "getnode"}


def impure_calls(source: str) -> list[str]:
    """The calls in `source` that read a clock, chance or the world, as `line: call`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        # A reference is enough: `default_factory=uuid4` calls it later.
        if isinstance(node, ast.Attribute) and node.attr in IMPURE_METHODS:
            found.append(f"{node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in IMPURE_FUNCTIONS | {"uuid1", "uuid4"}:
            found.append(f"{node.lineno}: {node.id}")
    return found


def pure_modules() -> list[str]:
    files = (path for package in PURE_PACKAGES for path in (PACKAGE / package).rglob("*.py"))
    return sorted(name for path in files if (name := path.relative_to(PACKAGE).as_posix()) not in EDGES)


@pytest.mark.parametrize("module", pure_modules())
def test_module_that_decides_reads_no_clock_chance_or_file(module: str) -> None:
    assert impure_calls((PACKAGE / module).read_text()) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("datetime.now(tz=UTC)", ["1: datetime.now"]),
        ("x = 1\ndate.today()", ["2: date.today"]),
        ("Field(default_factory=uuid4)", ["1: uuid4"]),
        ("uuid.uuid4()", ["1: uuid.uuid4"]),
        ("open('/etc/passwd')", ["1: open"]),
        ("now = evidence.observed_at\nuuid5(namespace, 'name')", []),
        ("class Reading:\n    open: list[str]", []),
    ],
)
def test_impure_call_is_found(source: str, found: list[str]) -> None:
    assert impure_calls(source) == found


def test_every_pure_package_is_looked_at() -> None:
    assert {module.split("/")[0] for module in pure_modules()} == set(PURE_PACKAGES)
    assert all((PACKAGE / edge).is_file() for edge in EDGES)
