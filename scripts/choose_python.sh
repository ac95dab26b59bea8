#!/usr/bin/env bash
# Prints the first Python >= 3.11 of this machine; $PYTHON, where set, is the only candidate.
set -euo pipefail

for candidate in ${PYTHON:-python3 python3.11 python3.12 python3.13 python3.14}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        # The interpreter itself: not a shim that may choose another one tomorrow, nor an activated environment's.
        "$candidate" -c 'import sys; print(sys._base_executable)'
        exit 0
    fi
done
echo "No Python >= 3.11 among: ${PYTHON:-python3 python3.11 python3.12 python3.13 python3.14}" >&2
exit 1
