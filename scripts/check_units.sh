#!/usr/bin/env bash
# Checks the systemd units without a running systemd and without root: `check_units.sh [FOLDER]` (default: deploy). FOLDER is laid out
# like deploy. Every unit must be understood whole, the audit unit must be as confined as promised, and its user must be made.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly deploy=${1:-deploy}
# In tenths: systemd-analyze's "overall exposure level" must not be above 1.5.
readonly most_exposure=15

for program in systemd-analyze systemd-sysusers; do
    if ! command -v "$program" >/dev/null; then
        echo "check_units.sh: $program is missing: install the package systemd (it need not run)" >&2
        exit 1
    fi
done
shopt -s nullglob
units=("$deploy"/systemd/*.service)
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
    # A template is checked by an instance of it.
    said=$(systemd-analyze verify --man=no --recursive-errors=no --root="$root" "${name/@./@plan.}" 2>&1) || fault "$name does not verify."
    # A key that it does not know is a warning to systemd, which then ignores it: to this project it is a missing setting.
    if [ -n "$said" ]; then fault "$name:" "$said"; fi
done

audit=$deploy/systemd/exitguard-audit.service
if ! exposure=$(systemd-analyze security --offline=true --threshold="$most_exposure" "$audit" 2>&1); then
    fault "exitguard-audit.service is more exposed than ${most_exposure%?}.${most_exposure: -1}:" "$(grep -E '^(✗|→)' <<<"$exposure" || echo "$exposure")"
fi

cp "$deploy/sysusers.d/exitguard.conf" "$root/usr/lib/sysusers.d/"
if ! said=$(systemd-sysusers --root="$root" exitguard.conf 2>&1); then
    fault "sysusers.d/exitguard.conf is not understood:" "$said"
fi
for user in $(sed -n 's/^User=//p' "${units[@]}" | sort -u); do
    if [ "$user" != root ] && ! grep -q "^$user:" "$root/etc/passwd" 2>/dev/null; then
        fault "User=$user: sysusers.d/exitguard.conf makes no such user"
    fi
done
exit "$failed"
