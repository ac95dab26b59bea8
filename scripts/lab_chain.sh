#!/usr/bin/env bash
# The chain lab: 24 real guests, {stock, guarded} x {QEMU 7.2, 11.1} x {host, EPYC} x {PMU on, off, not said}; what each exit costs,
# compared with what the judge and the cost matrix say of the same facts. tests/lab/chain/chain_lab.py does it:
#
#     lab_chain.sh            observe, and print the table; the result is in .local/lab-results/chain.json
#     lab_chain.sh --readme   the same; where every cell agrees, keep it as tests/lab/chain/recorded.json and write the table into README.md
#     lab_chain.sh --table    observe nothing: print the table of the recording that is kept
#
# Takes Debian on amd64 with qemu-system-x86, e2fsprogs and binutils, and no hardware virtualisation. The first time it builds the kernels
# (scripts/lab_kernels.sh) and fetches both QEMUs, 400 MB unpacked; after that it takes a minute or two. Takes no root but to install what a build
# of the kernels needs. Ends with 1 where a cell does not agree, and with 3 where the lab cannot run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export LC_ALL=C.UTF-8

mkdir -p .local/lab-chain
exec 9>.local/lab-chain/lock
if ! flock --nonblock 9; then
    echo 'Another run of the chain lab is under way; waiting for it ...' >&2
    flock 9
fi

readonly kernels=.local/lab-kernels/6.1
if [[ " $* " != *" --table "* && " $* " != *" --kernels"* ]]; then
    scripts/lab_kernels.sh 6.1 >/dev/null
    if [ ! -e "$kernels/guarded-pmu" ]; then
        echo "$kernels/guarded-pmu is missing: scripts/lab_kernels.sh does not build KVM with a pretended PMU." >&2
        exit 3
    fi
fi
exec .venv/bin/python tests/lab/chain/chain_lab.py "$@"
