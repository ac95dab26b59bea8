#!/usr/bin/env bash
# Everything but the tests that must hold before a change lands: `check.sh COVERAGE_FILE`. Runs all, then tells what failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
coverage=$1
export PATH=$PWD/.venv/bin:$PATH
failed=()

step() { # name, command
    local name=$1 output
    shift
    if output=$("$@" 2>&1); then
        printf 'ok      %s\n' "$name"
    else
        printf 'FAILED  %s: %s\n%s\n' "$name" "$*" "$output"
        failed+=("$name")
    fi
}

readonly of_no_site=(env -u UV_INDEX -u UV_DEFAULT_INDEX -u UV_INDEX_URL -u UV_EXTRA_INDEX_URL -u UV_FIND_LINKS)

# The lock travels: an address of one site's mirror in it would break every other site.
lock_names_public_indexes_only() {
    local others
    others=$(grep -oE '[a-z+]+://[^"]*|(path|directory|editable) = "[^"]*"' uv.lock |
        grep -vE '^https://(pypi\.org/simple|files\.pythonhosted\.org/)|^editable = "\."$' | sort -u)
    if [ -n "$others" ]; then
        printf 'uv.lock names other places than PyPI. Make it anew with: %s uv lock --no-config\n%s\n' "${of_no_site[*]}" "$others"
        return 1
    fi
}

# What decides and what parses must be tested. The talk to libvirtd is left out: it is tested where there is one to talk to.
readonly decides='agent/exitguard/model/*,agent/exitguard/policy/*,agent/exitguard/audit/*,agent/exitguard/savings/*,agent/exitguard/remedy/*,agent/exitguard/facts/*'

step 'format' ruff format --check .
step 'lint' ruff check .
step 'types' mypy
step 'import order' lint-imports --no-cache
step 'playbooks' env ANSIBLE_LIBRARY="$PWD/playbooks/library" ANSIBLE_MODULE_UTILS="$PWD/playbooks/module_utils" ansible-lint --offline --strict playbooks
step 'units' scripts/check_units.sh
step 'lock fits pyproject.toml' "${of_no_site[@]}" uv lock --check --no-config
step 'lock holds no mirror' lock_names_public_indexes_only
if [ -e scripts/generate.py ]; then step 'generated files are current' python scripts/generate.py --check; fi
step 'coverage of what decides' env COVERAGE_FILE="$coverage" coverage report --include="$decides" --omit='agent/exitguard/facts/libvirt/*' --skip-covered --fail-under=95

if ((${#failed[@]} > 0)); then
    printf 'make check: %d failed: %s\n' "${#failed[@]}" "$(IFS=, && echo "${failed[*]}")"
    exit 1
fi
echo 'make check: all passed'
