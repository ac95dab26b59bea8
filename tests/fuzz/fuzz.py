"""Coverage-guided fuzzing of what reads hostile files: `make fuzz FUZZ_TARGET=image FUZZ_MINUTES=10`. Not part of `make test`.

New inputs are kept under .local/fuzz; what ends in anything but an Obstacle is written there as crash-*, to be put into corpus/.
"""

import sys
from pathlib import Path

import atheris

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

with atheris.instrument_imports(include=["exitguard.facts.machine_code", "elftools"]):
    from targets import TARGETS

_MEMORY_MEBIBYTES = 1024  # of the whole process, with what the fuzzer keeps
_SECONDS_PER_INPUT = 20


def main() -> None:
    name, minutes = sys.argv[1], float(sys.argv[2])
    found = Path(".local/fuzz") / name
    found.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={int(60 * minutes)}",
        f"-rss_limit_mb={_MEMORY_MEBIBYTES}",
        f"-timeout={_SECONDS_PER_INPUT}",
        f"-artifact_prefix={found}/",
        "-max_len=65536",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(found), str(HERE / "corpus" / name)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
