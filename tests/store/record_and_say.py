"""Records observation after observation, and says the minute of each once it is stored. Arguments: directory, first minute, count."""

import sys
from pathlib import Path

from store_builders import VERDICT_CYCLE, domain_count, finding, judge, minutes, observe

from exitguard.store.host import HostStore


def main() -> None:
    state_dir, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    with HostStore.open(state_dir, now=minutes(first)) as store:
        for minute in range(first, first + count):
            at = minutes(minute)
            observation = observe(at, domains=domain_count(minute))
            findings = tuple(finding(n, VERDICT_CYCLE[(minute + n) % 3], at) for n in range(domain_count(minute)))
            store.record(observation, judge(observation, findings))
            sys.stdout.write(f"{minute}\n")
            sys.stdout.flush()


main()
