"""The Debian package, built once a session from the checkout and once by an ordinary user elsewhere."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the modules beside this file that hold no tests

from deb_package import ORDINARY_USER, RECORDS, Entry, build_deb, copy_of_the_checkout, entries, field, install, unpack
from debian_root import REPOSITORY, DebianRoot, clean_root, why_no_debian_root


@pytest.fixture(scope="session")
def deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of the checkout."""
    if shutil.which("apt-get") is None:
        pytest.skip("a Debian package is built on Debian only")
    output = tmp_path_factory.mktemp("deb")
    result = build_deb(REPOSITORY, "--output", output, home=tmp_path_factory.mktemp("home"))
    assert result.returncode == 0, result.stderr
    return Path(result.stdout.strip())


@pytest.fixture(scope="session")
def unpacked(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the package, and its control files in DEBIAN."""
    return unpack(deb, tmp_path_factory.mktemp("unpacked") / "tree")


@pytest.fixture(scope="session")
def newer_deb(deb: Path, needs_root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:  # noqa: ARG001 - its downloads are used
    """The same source as a newer package, built in another place by a user without privileges."""
    # Not below pytest's own folder, which is closed to other users.
    place = Path(tempfile.mkdtemp(prefix="exitguard-build-"))
    try:
        place.chmod(0o755)
        tree = place / "checkout"
        tree.mkdir()
        copy_of_the_checkout(tree, owner=ORDINARY_USER)
        result = build_deb(tree, "--version-suffix", "+newer", home=tree, user=ORDINARY_USER)
        assert result.returncode == 0, result.stderr
        yield Path(shutil.copy2(result.stdout.strip(), tmp_path_factory.mktemp("newer")))
    finally:
        shutil.rmtree(place)


@pytest.fixture(scope="session")
def needs_root() -> None:
    """Skip where no clean Debian root can be made."""
    missing = why_no_debian_root()
    if missing is not None:
        pytest.skip(missing)


class RootSupply:
    """Roots for one test after the other: one that a test gave back as it had got it serves the next."""

    def __init__(self, depends: str) -> None:
        self.depends = depends
        self._stack = ExitStack()
        self._spare: DebianRoot | None = None
        self._as_made: dict[str, Entry] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def take(self) -> DebianRoot:
        """A root without the package."""
        if self._spare is None:
            self._spare = self._stack.enter_context(clean_root(self.depends))
            self._as_made = entries(self._spare.path, without=RECORDS)
        return self._spare

    def give_back(self) -> None:
        """Purge the package and take away what the test added; keep the root only if that brought it back to what it was."""
        if self._spare is None:
            return
        self._spare.run("dpkg", "--purge", "exitguard")
        found = entries(self._spare.path, without=RECORDS)
        for path in sorted(found.keys() - self._as_made.keys(), reverse=True):
            added = self._spare.at(path)
            if found[path].kind == "directory":
                added.rmdir()
            else:
                added.unlink()
        if entries(self._spare.path, without=RECORDS) != self._as_made:
            self._spare = None
            self._stack.close()


@pytest.fixture(scope="module")
def roots(needs_root: None, deb: Path) -> Iterator[RootSupply]:  # noqa: ARG001 - skips
    with RootSupply(field(deb, "Depends")) as supply:
        yield supply


@pytest.fixture
def root(roots: RootSupply) -> Iterator[DebianRoot]:
    """A minimal Debian with what the package depends on, and not the package."""
    yield roots.take()
    roots.give_back()


@pytest.fixture(scope="module")
def installed(needs_root: None, deb: Path) -> Iterator[DebianRoot]:  # noqa: ARG001 - skips
    """A minimal Debian where the package was just installed; for tests that change nothing of what others look at."""
    with clean_root(field(deb, "Depends")) as made:
        install(made, deb)
        yield made
