#!/usr/bin/env bash
# Mutation testing of agent/exitguard/audit/chain.py with cosmic-ray, on a copy: it edits the module in place.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bin=$PWD/.venv/bin
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
tar --exclude=./.venv --exclude=./.git --exclude=./.local -cf - . | tar -xf - -C "$copy"
cd "$copy"
export PATH=$bin:$PATH PYTHONPATH=$copy/agent
cosmic-ray init tests/mutation.toml session.sqlite
cr-filter-operators session.sqlite tests/mutation.toml
cosmic-ray exec tests/mutation.toml session.sqlite
cr-report session.sqlite --show-pending | grep -A 30 'outcome: TestOutcome.SURVIVED' || true
cr-rate session.sqlite --fail-over 10
