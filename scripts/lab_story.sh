#!/usr/bin/env bash
# The story lab: one hypervisor from `affected` to `effective`, by exitguard's own verbs: audit, plan, approve, apply, reboot, audit, savings.
# tests/lab/story/story_lab.py tells it, in a virtual machine with systemd, libvirt and exitguard's Debian package:
#
#     lab_story.sh   the whole story; what exitguard said at each station is in .local/lab-results/story, with a transcript
#
# EXITGUARD_PACKAGE names a package that is built already; without it this checkout's is built first. Takes root, and Debian 12 on amd64 with
# qemu-system-x86, mmdebstrap and e2fsprogs; no hardware virtualisation. The first time it builds the kernels (scripts/lab_kernels.sh) and
# a disk of Debian, 4 GB; after that it takes some ten minutes. Ends with 1 where the story takes another turn, and with 3 where the lab cannot
# run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export LC_ALL=C.UTF-8

mkdir -p .local/lab-story
exec 9>.local/lab-story/lock
if ! flock --nonblock 9; then
    echo 'Another run of the story lab is under way; waiting for it ...' >&2
    flock 9
fi

scripts/lab_kernels.sh >/dev/null
exec .venv/bin/python tests/lab/story/story_lab.py "$@"
