# What an operator and a developer run. Each target sets up what it needs; a second run adds milliseconds.
#   make audit   audit this machine (AUDIT_ARGS='--format json' for another form)
#   make demo    a hub with 1,000 simulated hosts, and its report as a page (DEMO_HOSTS=100 for fewer)
#   make test    run the tests (TEST_ARGS='tests/policy -x' for some of them)
#   make deb     build the Debian package (DEB_ARGS='--version-suffix +site2' for a newer build of the same version)
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory

# Ansible refuses any other encoding, and a test must not depend on the caller's language.
export LC_ALL := C.UTF-8
# Chooses the interpreter where the first python3 >= 3.11 is not the one wanted.
export PYTHON

AUDIT_ARGS ?=
TEST_ARGS ?=
BENCH_ARGS ?=
DEB_ARGS ?=
SOAK_MINUTES ?= 30
OPENSTACK_ARGS ?=
SOAK_KILLS ?= 300
DEMO_HOSTS ?= 1000
FUZZ_TARGET ?= image
FUZZ_MINUTES ?= 10

bin := .venv/bin
# Where `make audit` remembers: inside the checkout, so that trying it changes nothing on the machine.
state := .local/state
coverage := .local/coverage
tested := $(shell find agent tests policies playbooks deploy scripts -type f -not -name '*.pyc' 2>/dev/null) pyproject.toml

.PHONY: help setup setup-dev audit demo test test-openstack check deb lab-kernels lab lab-chain lab-story soak fuzz mutation bench generate clean

help:
	@sed -n 's/^#   //p' Makefile; echo 'others: setup check test-openstack lab-kernels lab lab-chain lab-story soak fuzz mutation bench generate clean'

setup:
	@scripts/set_up.sh host

setup-dev:
	@scripts/set_up.sh dev

# The verdict is for the reader: not compliant (2) and unknown (3) are results of an audit that ran.
audit: setup
	@status=0; EXITGUARD_STATE_DIR=$(state) $(bin)/exitguard audit $(AUDIT_ARGS) || status=$$?; \
	case $$status in 0 | 2 | 3) ;; *) exit $$status ;; esac; \
	echo 'Go on with: EXITGUARD_STATE_DIR=$(state) $(bin)/exitguard report, explain, doctor ...' >&2

# Everything lies below .local/demo; the hub listens on loopback, and ends with this.
demo:
	@scripts/set_up.sh hub
	@scripts/demo.sh .local/demo $(DEMO_HOSTS)

test: setup-dev
	@scripts/system_packages.sh test || echo 'Going on without a local libvirtd and QEMU: the tests that need them are skipped.' >&2
	@scripts/run_tests.sh $(coverage) $(TEST_ARGS)

# A real OpenStack for its tests, as root on Debian 12: some four minutes; OPENSTACK_ARGS='tests/openstack/test_provenance.py'.
test-openstack: setup-dev
	@scripts/test_openstack.sh $(OPENSTACK_ARGS)

# Only where nothing ran since the last change: `make check` after `make test` reads what that run measured.
$(coverage): $(tested)
	@$(MAKE) test TEST_ARGS=

check: setup-dev $(coverage)
	@scripts/check.sh $(coverage)

deb: setup
	@scripts/build_deb.sh $(DEB_ARGS)

# A daemon under faults, then rollouts killed SOAK_KILLS times, as root; an hour or more.
soak: setup-dev
	@$(bin)/python tests/integration/soak_daemon.py --minutes $(SOAK_MINUTES)
	@EXITGUARD_TEST_KILLS=$(SOAK_KILLS) $(bin)/pytest tests/integration/test_remedies_here.py -q -k kill

# Hostile kernel images, found by what they make the program do: FUZZ_TARGET is image, container or btf.
fuzz: setup-dev
	@.venv/bin/uv pip install --quiet 'atheris>=2.3,<4'
	@$(bin)/python tests/fuzz/fuzz.py $(FUZZ_TARGET) $(FUZZ_MINUTES)

# Debian's KVM of Linux 6.1 and 6.12, built with and without the guard: some ten minutes and 3 GB the first time.
lab-kernels: setup-dev
	@scripts/lab_kernels.sh

# What a VM exit takes on those kernels, by `exitguard measure` and by a loop in C, beside the cost matrix: some five minutes, 60 MB more.
lab: lab-kernels
	@scripts/lab.sh

# 24 real guests on those kernels, under emulation, beside what is said of them: some minutes and 400 MB more.
lab-chain: lab-kernels
	@scripts/lab_chain.sh

# One virtual hypervisor from `affected` to `effective`, by plan, approval and reboots, as root: some ten minutes, 4 GB more the first time.
lab-story: lab-kernels
	@scripts/lab_story.sh

# Mutation testing of the chain, on a copy of the tree; takes about half an hour. The goal is 90 %.
mutation: setup-dev
	@scripts/mutation.sh

bench: setup-dev
	@$(bin)/python bench/run.py $(BENCH_ARGS)

generate: setup-dev
	@$(bin)/python scripts/generate.py

clean:
	rm -rf .venv .local .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .ansible build dist
	find agent tests bench scripts -name __pycache__ -type d -prune -exec rm -rf {} +
