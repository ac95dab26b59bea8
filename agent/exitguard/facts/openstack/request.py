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
    #: How long the whole look may take: nothing is asked after that.
    limit_seconds: float = 1800.0
    #: How many requests a second at most, of one service.
    requests_per_second: float = 20.0
    #: How long to wait before a busy or broken service is asked again, where it does not say so itself; twice as long each time.
    retry_pause_seconds: float = 1.0
    #: The directory of what playbooks noted of clouds; None where nothing is to be read.
    record_dir: Path | None = None
