"""Makes store_builders.py importable for the tests here; the programs that they start find it beside themselves."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
