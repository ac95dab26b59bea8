#!/usr/bin/env bash
# The tests beside a real OpenStack: `test_openstack.sh [PYTEST ARGUMENT...]`, as root on Debian 12. Installs the packages that are missing,
# brings the cloud up in namespaces of its own (about a minute), runs tests/openstack there, and leaves nothing behind but the packages.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '%s\n' "$*" >&2; }

# The python3-* packages hold all of OpenStack's code and none of its init scripts, debconf questions and files of /etc.
readonly packages=(
    python3-nova python3-libvirt python3-keystone python3-glance python3-placement python3-openstackclient python3-pymysql
    rabbitmq-server mariadb-server uwsgi-core uwsgi-plugin-python3 iproute2
)
readonly lock_wait_seconds=120
readonly install_limit_seconds=1200
readonly no_services=/usr/sbin/policy-rc.d

missing_packages() {
    local package
    for package in "${packages[@]}"; do
        [ "$(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || printf '%s\n' "$package"
    done
}

# Debian starts what it installs unless this file says no; one that is there already is the operator's.
install_without_starting() { # packages
    local made=no status=0
    if [ ! -e "$no_services" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$no_services"
        chmod 755 "$no_services"
        made=yes
        trap 'rm -f "$no_services"' EXIT
    fi
    DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 timeout "$install_limit_seconds" apt-get -q -y \
        -o "DPkg::Lock::Timeout=$lock_wait_seconds" -o Dpkg::Use-Pty=0 install --no-install-recommends "$@" >&2 </dev/null || status=$?
    if [ "$made" = yes ]; then
        rm -f "$no_services"
        trap - EXIT
    fi
    return "$status"
}

if ((EUID != 0)); then
    say "The OpenStack of the tests takes root, for namespaces of its own: run this as root."
    exit 1
fi
if ! command -v apt-get >/dev/null; then
    say "The OpenStack of the tests is made of Debian 12's packages; this machine has no apt-get."
    exit 1
fi
mapfile -t missing < <(missing_packages)
if ((${#missing[@]} > 0)); then
    say "Installing: ${missing[*]}"
    say "MariaDB and RabbitMQ are for these tests alone: on a machine with systemd, disable their services, or the next boot starts them."
    timeout "$install_limit_seconds" apt-get -q -o Acquire::Retries=3 update >&2 </dev/null || say "Trying with the package lists that are here."
    install_without_starting "${missing[@]}"
fi
# Paths may be among the arguments; without one it is all of tests/openstack.
exec .venv/bin/python tests/openstack/with_stack.py .venv/bin/pytest -q -p no:cacheprovider -o testpaths=tests/openstack "$@"
