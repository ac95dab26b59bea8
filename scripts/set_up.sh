#!/usr/bin/env bash
# Makes .venv/bin/exitguard out of uv.lock: `set_up.sh host` what a hypervisor needs, `set_up.sh hub` what a hub needs, `set_up.sh dev` both and what
# the tests need.
# When nothing changed since the last time it only compares a stamp. A run that was killed half-way is begun anew by the next.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly uv_release='uv==0.13.9'
readonly stamps=.venv/.set-up unfinished=.venv/.set-up/unfinished

say() { printf '%s\n' "$*" >&2; }

case ${1:-} in
    host) extras=(--extra host) ;;
    hub) extras=(--extra hub) ;;
    dev) extras=(--extra host --extra hub --extra openstack --extra dev) ;;
    *) say "usage: $0 host|hub|dev" && exit 64 ;;
esac

wanted=$(cat pyproject.toml uv.lock scripts/set_up.sh | sha256sum)
up_to_date() { [ ! -e "$unfinished" ] && [ "$(cat "$stamps/$1" 2>/dev/null)" = "$wanted" ]; }
# A virtual environment holds absolute paths: it is of no use to a checkout that was moved or copied.
at_home() { [ "$(cat "$stamps/location" 2>/dev/null)" = "$(pwd -P)" ]; }
# The import fails where the system's Python is another one since.
ready() {
    { up_to_date "$1" || up_to_date dev; } && at_home && .venv/bin/python -c 'import exitguard' 2>/dev/null && [ -x .venv/bin/exitguard ]
}
if ready "$1"; then exit 0; fi

# Another set-up may be at work, also one whose `make` was killed: its children hold the lock as long as they write to .venv.
mkdir -p .local
exec 9>.local/set-up.lock
if ! flock --wait 900 9; then
    say "Another set-up of this checkout has held .local/set-up.lock for 15 minutes; see with 'fuser -v .local/set-up.lock' what it does."
    exit 1
fi
if ready "$1"; then exit 0; fi

scripts/system_packages.sh build
python=$(scripts/choose_python.sh)

if [ -e "$unfinished" ] || ! at_home || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    say "Creating .venv with $("$python" --version) ($python)"
    rm -rf .venv
    mkdir -p "$stamps"
    touch "$unfinished"
    "$python" -m venv .venv
    pwd -P >"$stamps/location"
fi
mkdir -p "$stamps"
touch "$unfinished"
say "Installing what uv.lock names into .venv (${extras[*]}); the first time takes a minute or two"
.venv/bin/python -m pip install --quiet --disable-pip-version-check "$uv_release"
# --inexact: an audit does not take away what the tests installed. No Python but the one chosen above.
env -u VIRTUAL_ENV UV_PROJECT_ENVIRONMENT=.venv UV_PYTHON_DOWNLOADS=never \
    .venv/bin/uv sync --quiet --frozen --inexact --no-progress --python .venv/bin/python "${extras[@]}"
printf '%s' "$wanted" >"$stamps/$1"
rm "$unfinished"
