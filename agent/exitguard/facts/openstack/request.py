"""Which cloud to look at, and how patiently."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CloudRequest:
    """One look at one cloud."""

    #: Its name in clouds.yaml; None for the one that OS_CLOUD or the OS_ variables describe.
    cloud: str | None = None
    #: How long one answer may take, from the request to its last byte.
    timeout_seconds: float = 60.0
    #: How many requests a second at most.
    requests_per_second: float = 20.0
    #: The directory of what playbooks noted of clouds; None where nothing is to be read.
    record_dir: Path | None = None
