#!/usr/bin/env bash
# Runs the tests: `run_tests.sh COVERAGE_FILE [pytest arguments]`. A whole run that passed leaves what it covered in COVERAGE_FILE;
# a run of some tests, or a failed one, leaves nothing that could be taken for it.
#
# A whole run is three at once, since much of it waits: the service in a virtual machine, the package and the playbooks in Debian roots,
# and all the rest, which alone is measured. The output of the first two comes after the other's. The machine takes longest, and everything
# waits for it: the others step back for it where processors are few.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
coverage=$1
shift

if (($# > 0)); then
    exec .venv/bin/pytest "$@"
fi
readonly in_a_machine=(tests/system)
readonly in_roots=(tests/deploy tests/playbooks tests/act)
mkdir -p "$(dirname "$coverage")"
rm -f "$coverage"
logs=$(mktemp -d)
.venv/bin/pytest -p no:cacheprovider "${in_a_machine[@]}" >"$logs/machine" 2>&1 &
machine=$!
nice -n 5 .venv/bin/pytest -p no:cacheprovider "${in_roots[@]}" >"$logs/roots" 2>&1 &
roots=$!
# Their own children, a virtual machine among them, end with them.
trap 'kill "$machine" "$roots" 2>/dev/null || true; rm -rf "$logs"' EXIT

apart=("${in_a_machine[@]}" "${in_roots[@]}")
status=0
COVERAGE_FILE=$coverage.running nice -n 5 .venv/bin/pytest --cov --cov-report= "${apart[@]/#/--ignore=}" || status=$?
wait "$roots" || status=$?
cat "$logs/roots"
wait "$machine" || status=$?
cat "$logs/machine"
if ((status != 0)); then exit "$status"; fi
mv "$coverage.running" "$coverage"
