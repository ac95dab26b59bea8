"""Prunes to fewer and fewer observations, in transactions of a few rows, and says so after each.

Arguments: directory, rows in a transaction, minute of now.
"""

import sys
from datetime import timedelta
from pathlib import Path

from store_builders import START, minutes

from exitguard.store import retention
from exitguard.store.host import HostStore


def main() -> None:
    state_dir, rows, now = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    retention._BATCH_ROWS = rows
    with HostStore.open(state_dir, now=START) as store:
        for kept in range(now, -1, -3):
            store.prune(
                minutes(now),
                history=timedelta(minutes=kept),
                samples=timedelta(minutes=kept),
                limit_bytes=2**40,
                pulse=lambda: (sys.stdout.write("batch\n"), sys.stdout.flush()),
            )


main()
