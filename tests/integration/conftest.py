"""A libvirt of the tests' own for the session, emptied after every module; and the settings that no test may borrow from the machine."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the modules beside this file that hold no tests

from audits import admit_tcg
from domain_documents import guest_xml
from libvirt_lab import LibvirtLab, open_lab, why_no_lab

from exitguard.policy.load import load_rulebook
from exitguard.policy.schema import Rulebook


@pytest.fixture(scope="session")
def session_lab() -> Iterator[LibvirtLab]:
    """A libvirtd with its own file tree and process tree; see libvirt_lab.py."""
    missing = why_no_lab()
    if missing is not None:
        pytest.skip(missing)
    with open_lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def lab(session_lab: LibvirtLab) -> Iterator[LibvirtLab]:
    """The session's libvirtd without a domain, running."""
    session_lab.ensure_daemon()
    session_lab.clear()
    yield session_lab
    session_lab.ensure_daemon()
    session_lab.clear()


@pytest.fixture(scope="session")
def why_no_kvm(session_lab: LibvirtLab) -> str | None:
    """Why no KVM guest starts on this machine; None where one does. Told by starting one."""
    session_lab.ensure_daemon()
    return session_lab.why_not_startable(guest_xml("kvm-at-all", kind="kvm", mode="custom"))


@pytest.fixture
def kvm(why_no_kvm: str | None) -> None:
    """Skip where no KVM guest starts."""
    if why_no_kvm is not None:
        pytest.skip(f"no KVM guest starts here: {why_no_kvm}")


@pytest.fixture(scope="session")
def tcg_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped policy, for TCG guests too: they start on every machine."""
    return admit_tcg(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="session")
def tcg_rulebook(tcg_policy: Path) -> Rulebook:
    return load_rulebook((tcg_policy,), ())
