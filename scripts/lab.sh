#!/usr/bin/env bash
# The cost lab: what a VM exit takes on Linux 6.1 and 6.12, with and without the guard, by `exitguard measure` itself, beside a loop in C
# and the cost matrix. tests/lab/cost/cost_lab.py does it:
#
#     lab.sh            observe, and print the tables; the result is in .local/lab-results/cost.json
#     lab.sh --readme   the same; where all agrees, keep it as tests/lab/cost/recorded.json and write the tables into
#                       tests/lab/README.md
#     lab.sh --table    observe nothing: print the tables of the recording that is kept; with --readme, write them anew: after a change of the
#                       cost matrix
#
# Takes Debian on amd64 with qemu-system-x86, e2fsprogs and gcc, and no hardware virtualisation. The first time it builds the kernels
# (scripts/lab_kernels.sh), and fetches Debian's Python and the agent's dependencies, 60 MB; after that it takes some five minutes. Takes no
# root but to install what a build of the kernels needs. Ends with 1 where something does not agree, and with 3 where the lab cannot run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export LC_ALL=C.UTF-8

mkdir -p .local/lab-cost
exec 9>.local/lab-cost/lock
if ! flock --nonblock 9; then
    echo 'Another run of the cost lab is under way; waiting for it ...' >&2
    flock 9
fi

if [[ " $* " != *" --table "* ]]; then scripts/lab_kernels.sh >/dev/null; fi
exec .venv/bin/python tests/lab/cost/cost_lab.py "$@"
