#!/usr/bin/env bash
# Checks the systemd units without a running systemd and without root: `check_units.sh [FOLDER]` (default: deploy). FOLDER is laid out
# like deploy. Every unit must be understood whole, every service must be as confined as promised, and its user must be made.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly deploy=${1:-deploy}
# In tenths: systemd-analyze's "overall exposure level" of a service must not be above this. The remedy service is root by its business; its
# bound keeps what is closed all the same from being opened by and by.
declare -rA most_exposure=([exitguard-audit]=15 [exitguard-remedy]=63)

for program in systemd-analyze systemd-sysusers; do
    if ! command -v "$program" >/dev/null; then
        echo "check_units.sh: $program is missing: install the package systemd (it need not run)" >&2
        exit 1
    fi
done
shopt -s nullglob
services=("$deploy"/systemd/*.service)
units=("${services[@]}" "$deploy"/systemd/*.path)
if ((${#units[@]} == 0)); then
    echo "check_units.sh: no unit in $deploy/systemd" >&2
    exit 1
fi

# A host's file tree with no more than the units refer to: what they need and do not find there is a fault.
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root"/{etc,usr/bin,usr/lib/systemd/system,usr/lib/sysusers.d}
ln -s usr/bin "$root/bin"
ln -s usr/lib "$root/lib"
printf '#!/bin/sh\n' | tee "$root/usr/bin/exitguard" >"$root/usr/bin/kill"
chmod 755 "$root"/usr/bin/*
for target in sysinit basic shutdown multi-user; do
    printf '[Unit]\nDescription=%s\nDefaultDependencies=no\n' "$target" >"$root/usr/lib/systemd/system/$target.target"
done
cp "${units[@]}" "$root/usr/lib/systemd/system/"

failed=0
fault() {
    printf '%s\n' "$@" >&2
    failed=1
}

for unit in "${units[@]}"; do
    name=${unit##*/}
    said=$(systemd-analyze verify --man=no --recursive-errors=no --root="$root" "$name" 2>&1) || fault "$name does not verify."
    # A key that it does not know is a warning to systemd, which then ignores it: to this project it is a missing setting.
    if [ -n "$said" ]; then fault "$name:" "$said"; fi
done

for service in "${services[@]}"; do
    name=${service##*/}
    most=${most_exposure[${name%.service}]:-}
    if [ -z "$most" ]; then
        fault "$name: check_units.sh says nowhere how exposed it may be: add it to most_exposure"
    elif ! exposure=$(systemd-analyze security --offline=true --threshold="$most" "$service" 2>&1); then
        fault "$name is more exposed than ${most%?}.${most: -1}:" "$(grep -E '^(✗|→)' <<<"$exposure" || echo "$exposure")"
    fi
done

cp "$deploy/sysusers.d/exitguard.conf" "$root/usr/lib/sysusers.d/"
if ! said=$(systemd-sysusers --root="$root" exitguard.conf 2>&1); then
    fault "sysusers.d/exitguard.conf is not understood:" "$said"
fi
for user in $(sed -n 's/^User=//p' "${services[@]}" | sort -u); do
    if [ "$user" != root ] && ! grep -q "^$user:" "$root/etc/passwd" 2>/dev/null; then
        fault "User=$user: sysusers.d/exitguard.conf makes no such user"
    fi
done
exit "$failed"
