#!/usr/bin/env bash
# Installs the system packages that are missing: `system_packages.sh build` what it takes to build and run the reading side,
# `system_packages.sh test` a local libvirtd with QEMU for the integration tests, `system_packages.sh deb` what builds the Debian package.
# Nothing missing: says nothing, takes milliseconds.
#
# What is missing is told by the thing itself (a header, a program), not by a package name, so that a Python or a compiler
# from elsewhere counts. Never escalates: without root it prints the line to run, and stops.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

say() { printf '%s\n' "$*" >&2; }

# A system package manager that hangs on a lock or a dead mirror must not hang the set-up for ever.
readonly lock_wait_seconds=120
readonly install_limit_seconds=1200

# Debian starts an sshd as soon as it is installed, and at each boot, unless this file is there. The tests only want the program.
readonly no_sshd_service=(install -D -m 644 /dev/null /etc/ssh/sshd_not_to_be_run)

has_libvirt_daemon() { command -v libvirtd >/dev/null || command -v virtqemud >/dev/null; }

has_libvirt_qemu_driver() { compgen -G '/usr/lib*/libvirt/connection-driver/libvirt_driver_qemu.so' >/dev/null ||
    compgen -G '/usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so' >/dev/null; }

has_postgresql() { command -v initdb >/dev/null || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; }

# Debian makes a cluster and starts it as soon as PostgreSQL is installed, unless this file says no. The tests make their own.
readonly no_cluster=/etc/postgresql-common/createcluster.d/exitguard-tests.conf

has_qemu() { command -v qemu-system-x86_64 >/dev/null || [ -x /usr/libexec/qemu-kvm ]; }

missing_for_build() { # one "Debian package|EL9 package" a line
    command -v pkg-config >/dev/null || echo 'pkg-config|pkgconf-pkg-config'
    command -v gcc >/dev/null || echo 'gcc|gcc'
    { command -v pkg-config >/dev/null && pkg-config --exists libvirt; } || echo 'libvirt-dev|libvirt-devel'
    local python
    if ! python=$("$here/choose_python.sh" 2>/dev/null); then
        echo 'python3|python3.11'
        echo 'python3-venv|python3.11'
        echo 'python3-dev|python3.11-devel'
        return
    fi
    "$python" -c 'import ensurepip, venv' 2>/dev/null || echo 'python3-venv|python3.11'
    "$python" -c 'import pathlib, sys, sysconfig; sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())' ||
        echo 'python3-dev|python3.11-devel'
}

missing_for_test() {
    { has_libvirt_daemon && command -v virtlogd >/dev/null; } || echo 'libvirt-daemon-system|libvirt-daemon'
    has_libvirt_qemu_driver || echo 'libvirt-daemon-driver-qemu|libvirt-daemon-driver-qemu'
    has_qemu || echo 'qemu-system-x86|qemu-kvm-core'
    command -v virsh >/dev/null || echo 'libvirt-clients|libvirt-client'
    command -v rpm >/dev/null || echo 'rpm|rpm'
    # A hub's database: the tests start a cluster of their own.
    has_postgresql || echo 'postgresql|postgresql-server'
    # What kernels are compiled and packed with: the tests make images of their own.
    command -v clang >/dev/null || echo 'clang|clang'
    command -v pahole >/dev/null || echo 'pahole|dwarves'
    command -v xz >/dev/null || echo 'xz-utils|xz'
    local packer
    for packer in bzip2 lz4 lzop zstd; do
        command -v "$packer" >/dev/null || echo "$packer|$packer"
    done
    # systemd-analyze checks the units; systemd itself need not run.
    command -v systemd-analyze >/dev/null || echo 'systemd|systemd'
    # The Debian package is built and tried on Debian only, in a root of its own.
    if command -v apt-get >/dev/null; then
        command -v debootstrap >/dev/null || echo 'debootstrap|'
        # A virtual machine with systemd: its disk, and the way into it.
        command -v mmdebstrap >/dev/null || echo 'mmdebstrap|'
        command -v mke2fs >/dev/null || echo 'e2fsprogs|'
        { command -v ssh >/dev/null && command -v ssh-keygen >/dev/null; } || echo 'openssh-client|'
        # Hosts that Ansible reaches: an sshd each, in networks of their own.
        [ -x /usr/sbin/sshd ] || echo 'openssh-server|'
        command -v ip >/dev/null || echo 'iproute2|'
        # The HTML report is tried in a real browser.
        command -v chromium >/dev/null || echo 'chromium|'
        # Manual pages and completions are tried by what reads them.
        command -v man >/dev/null || echo 'man-db|'
        local reader
        for reader in mandoc zsh fish; do
            command -v "$reader" >/dev/null || echo "$reader|"
        done
        missing_for_deb
    fi
}

# Here a package is what counts: the .deb runs on the distribution's own Python, and names the packages it was made with. These are
# those of Build-Depends in deploy/debian/control, which dpkg-buildpackage compares once more.
missing_for_deb() {
    local package
    for package in build-essential debhelper libvirt-dev pkgconf python3-dev; do
        [ "$(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || echo "$package|"
    done
}

# On a hypervisor the headers must fit the libvirt that is there: the archive's newer ones would upgrade libvirt, and restart it,
# in order to look at it.
pinned_to_running_libvirt() { # package, installed version of the libvirt library, separator
    if [ -n "$2" ] && has_libvirt_daemon; then echo "$1$3$2"; else echo "$1"; fi
}

apt_update() {
    # DPkg::Lock::Timeout covers dpkg's locks, not the one of the package lists.
    local output deadline=$((SECONDS + lock_wait_seconds))
    while ! output=$(timeout "$install_limit_seconds" apt-get -q -o Acquire::Retries=3 update 2>&1 </dev/null); do
        if [[ $output != *'Could not get lock'* ]] || ((SECONDS > deadline)); then
            say "$output"
            return 1
        fi
        sleep 3
    done
}

install_with_apt() {
    local packages=("$@")
    if [[ " ${packages[*]} " == *' libvirt-dev '* ]]; then
        local version
        version=$(dpkg-query -W -f '${Version}' libvirt0 2>/dev/null || true)
        packages=("${packages[@]/#libvirt-dev/$(pinned_to_running_libvirt libvirt-dev "$version" =)}")
    fi
    command=(apt-get -q -y -o "DPkg::Lock::Timeout=$lock_wait_seconds" -o Dpkg::Use-Pty=0 install --no-install-recommends "${packages[@]}")
    if ((EUID != 0)); then return 0; fi
    say "Installing system packages: ${packages[*]}"
    if [[ " ${packages[*]} " == *' openssh-server '* ]]; then
        "${no_sshd_service[@]}"
        say "sshd is for the tests alone: where this machine is to serve SSH, remove /etc/ssh/sshd_not_to_be_run and start it."
    fi
    if [[ " ${packages[*]} " == *' postgresql '* ]]; then
        mkdir -p "${no_cluster%/*}"
        echo 'create_main_cluster = false' >"$no_cluster"
    fi
    apt_update || say "The package lists could not be refreshed; trying with those that are here."
    # needrestart must not restart a hypervisor's services because a compiler was installed.
    DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 timeout "$install_limit_seconds" "${command[@]}" >&2 </dev/null
}

builder_repository() { # libvirt-devel is in CodeReady Builder, which EL9 ships switched off
    timeout "$lock_wait_seconds" dnf -q repolist --all </dev/null 2>/dev/null |
        awk '$1 ~ /^(crb|codeready-builder-for-rhel-9-[a-z0-9_]+-rpms|ol9_codeready_builder)$/ { print $1; exit }'
}

install_with_dnf() {
    local packages=("$@") repository=()
    if [[ " ${packages[*]} " == *' libvirt-devel '* ]]; then
        local version name
        version=$(rpm -q --queryformat '%{VERSION}-%{RELEASE}' libvirt-libs 2>/dev/null) || version=
        packages=("${packages[@]/#libvirt-devel/$(pinned_to_running_libvirt libvirt-devel "$version" -)}")
        name=$(builder_repository) || name=
        if [ -n "$name" ]; then repository=(--enablerepo="$name"); fi
    fi
    command=(dnf -y --setopt=install_weak_deps=False "${repository[@]}" install "${packages[@]}")
    if ((EUID != 0)); then return 0; fi
    say "Installing system packages: ${packages[*]}"
    timeout "$install_limit_seconds" "${command[@]}" >&2 </dev/null
}

package_names() { # of "Debian package|EL9 package" arguments, the names that this system knows, each once
    if command -v apt-get >/dev/null; then printf '%s\n' "${@%|*}"; else printf '%s\n' "${@#*|}"; fi | awk '!seen[$0]++'
}

install_packages() { # sets `command`; returns 1 when it ran and failed, 2 when it may not run, 3 when it cannot
    command=()
    if command -v apt-get >/dev/null; then
        install_with_apt "$@" || return 1
    elif command -v dnf >/dev/null; then
        install_with_dnf "$@" || return 1
    else
        return 3
    fi
    if ((EUID != 0)); then return 2; fi
}

provide() { # purpose
    local purpose=$1 missing packages result=0
    mapfile -t missing < <("missing_for_$purpose")
    if ((${#missing[@]} == 0)); then return 0; fi
    mapfile -t packages < <(package_names "${missing[@]}")
    install_packages "${packages[@]}" || result=$?
    if ((result == 0)); then
        mapfile -t missing < <("missing_for_$purpose")
        if ((${#missing[@]} == 0)); then return 0; fi
        mapfile -t packages < <(package_names "${missing[@]}")
        say "Still missing after the installation: ${packages[*]}. Install them by hand, then run this again."
        return 1
    fi
    case $result in
        1) say "Could not install what is missing. The command was:" && say "    ${command[*]}"
            if [[ ${command[*]} == *libvirt-dev*[=-][0-9]* ]]; then
                say "The libvirt headers are asked for in the version of this host's libvirt, so that nothing upgrades it."
                say "If the archive no longer has that version, upgrade libvirt in a maintenance window of your own, then run this again."
            fi ;;
        2) say "System packages are missing, and installing them takes root. Run this, then the same again:"
            if command -v apt-get >/dev/null; then say "    sudo apt-get update"; fi
            if [[ ${command[*]} == *' openssh-server'* ]]; then say "    sudo ${no_sshd_service[*]}"; fi
            say "    sudo ${command[*]}" ;;
        3) say "Missing, and neither apt-get nor dnf is here to install it. By EL9's names: ${packages[*]}" ;;
    esac
    return 1
}

case ${1:-} in
    build | test) provide "$1" ;;
    deb)
        if ! command -v apt-get >/dev/null; then
            say "A Debian package is built on Debian 12 or newer; this machine has no apt-get."
            exit 1
        fi
        provide deb ;;
    *) say "usage: $0 build|test|deb" && exit 64 ;;
esac
