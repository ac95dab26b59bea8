#!/usr/bin/env bash
# Runs the tests: `run_tests.sh COVERAGE_FILE [pytest arguments]`. A whole run that passed leaves what it covered in COVERAGE_FILE;
# a run of some tests, or a failed one, leaves nothing that could be taken for it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
coverage=$1
shift

if (($# > 0)); then
    exec .venv/bin/pytest "$@"
fi
mkdir -p "$(dirname "$coverage")"
rm -f "$coverage"
COVERAGE_FILE=$coverage.running .venv/bin/pytest --cov --cov-report=
mv "$coverage.running" "$coverage"
