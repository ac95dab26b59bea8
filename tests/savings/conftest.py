"""Makes the builders beside the tests, and those of tests/audit, importable."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "audit")]
