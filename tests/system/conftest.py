"""One machine for all tests of the service: booted once, the package installed once."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the modules beside this file that hold no tests

from audit_service import AuditService
from debian_image import cached_image, why_no_image
from guests import DEFINE, DESTROY, GUEST_UUID, START, UNDEFINE, wait_for_guest, write_guest
from machine import Machine, why_no_machine

_ROOT = Path(__file__).parents[2]
_BUILD_LIMIT_SECONDS = 900


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Debian package of this checkout; EXITGUARD_PACKAGE names one that is built already."""
    if ready := os.environ.get("EXITGUARD_PACKAGE"):
        return Path(ready).absolute()
    folder = tmp_path_factory.mktemp("package")
    command = ["scripts/build_deb.sh", "--output", str(folder)]
    built = subprocess.run(
        command, cwd=_ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_BUILD_LIMIT_SECONDS, check=False
    )
    assert built.returncode == 0, built.stderr
    return next(folder.glob("exitguard_*.deb"))


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    """A Debian 12 with systemd, libvirtd and /dev/kvm, running."""
    missing = why_no_image() or why_no_machine()
    if missing is not None:
        pytest.skip(missing)
    with Machine(cached_image(_ROOT / ".local/system")) as running:
        yield running


@pytest.fixture(scope="session")
def installed_service(machine: Machine, package: Path) -> AuditService:
    """The package installed as an operator would, and its service enabled."""
    machine.put(package, f"/root/{package.name}")
    machine.output(f"apt-get -q -y install ./{package.name}", timeout=300)
    service = AuditService(machine)
    assert service["UnitFileState"] == "disabled", "installing must start nothing"
    service.enable()
    return service


@pytest.fixture
def service(installed_service: AuditService) -> AuditService:
    """The service running as shipped, whatever the last test did to it."""
    installed_service.restore()
    return installed_service


@pytest.fixture
def guest(service: AuditService) -> Iterator[str]:
    """The uuid of a KVM guest that runs and is judged; gone after the test."""
    machine = service.machine
    write_guest(machine)
    mark = service.mark()
    machine.output(f"{DEFINE} && {START}")
    wait_for_guest(service, mark)
    yield GUEST_UUID
    machine.run(f"systemctl start libvirtd; {DESTROY}; {UNDEFINE}")
