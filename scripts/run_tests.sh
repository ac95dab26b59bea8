#!/usr/bin/env bash
# Runs the tests: `run_tests.sh COVERAGE_FILE [pytest arguments]`. A whole run that passed leaves what it covered in COVERAGE_FILE;
# a run of some tests, or a failed one, leaves nothing that could be taken for it.
#
# A whole run is two at once: the package and the service are tried in a Debian root and in a virtual machine, which takes as long as
# all the rest and none of it in this process. Their output comes after the other's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
coverage=$1
shift

if (($# > 0)); then
    exec .venv/bin/pytest "$@"
fi
readonly apart=(tests/deploy tests/system)
mkdir -p "$(dirname "$coverage")"
rm -f "$coverage"
log=$(mktemp)
.venv/bin/pytest -p no:cacheprovider "${apart[@]}" >"$log" 2>&1 &
beside=$!
# Its own children, a virtual machine among them, end with it.
trap 'kill "$beside" 2>/dev/null || true; rm -f "$log"' EXIT

status=0
COVERAGE_FILE=$coverage.running .venv/bin/pytest --cov --cov-report= "${apart[@]/#/--ignore=}" || status=$?
wait "$beside" || status=$?
cat "$log"
if ((status != 0)); then exit "$status"; fi
mv "$coverage.running" "$coverage"
