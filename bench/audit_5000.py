"""5,000 domains through libvirt's embedded test driver, against 500: the time per domain must not grow."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from audit_500 import audit_everything
from libvirt_python import load_libvirt
from measurement import Contest, Measurement
from nova_domain import domain_xml

_MANY, _FEW = 5_000, 500


@contextmanager
def _prepare() -> Iterator[Contest]:
    load_libvirt()
    with tempfile.TemporaryDirectory(prefix="exitguard-bench-") as folder:
        many, few = (_write_node(Path(folder), domains) for domains in (_MANY, _FEW))
        yield Contest(
            subject=lambda: audit_everything(many, _MANY),
            peer=lambda: audit_everything(few, _FEW),
            subject_units=_MANY,
            peer_units=_FEW,
            note="times are per domain, the reading of the test driver's file included",
        )


def _write_node(folder: Path, domains: int) -> str:
    """A node of the test driver (https://libvirt.org/drvtest.html) with that many domains, and its URI."""
    file = folder / f"{domains}.xml"
    file.write_text("<node>\n" + "".join(domain_xml(number, type="test") for number in range(domains)) + "</node>\n")
    return f"test://{file}"


MEASUREMENT = Measurement(
    name="audit-5000",
    what=f"audit of {_MANY:,} domains of the test driver, per domain",
    peer=f"the same of {_FEW} domains, per domain",
    goal_ratio=1.0,
    pairs=7,
    prepare=_prepare,
)
