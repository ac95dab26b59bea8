#!/usr/bin/env bash
# Builds KVM's modules of Debian's 6.1 and 6.12 kernels, each as Debian has it (stock) and with the guard (guarded), and both of them told
# of a PMU that the machine does not have (stock-pmu, guarded-pmu): `lab_kernels.sh [--newest] [6.1] [6.12]`, by default both lineages. A
# second run does nothing; a changed patch builds its modules again.
# --newest looks whether the archive has a newer kernel since, and puts it in the place of the old one; without it, what was
# fetched once stays.
#
# .local/lab-kernels/RELEASE/ then holds, for each kernel RELEASE (such as 6.1.0-56-cloud-amd64):
#     stock/ guarded/ stock-pmu/ guarded-pmu/
#                         kvm.ko kvm-amd.ko kvm-intel.ko, which load into that kernel
#     vmlinuz             the kernel itself
#     debian/             its package, unpacked: every other module, and Debian's own KVM
#     built-from          the packages and the compiler, one `name value` a line
# and .local/lab-kernels/LINEAGE is a link to the RELEASE that was chosen. tests/lab/README.md says what they are for.
#
# Takes Debian on amd64, 350 MB to fetch, 2 GB of disk and about ten minutes. Changes nothing on the machine but for the packages that
# a build takes, and those only as root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
umask 022
export LC_ALL=C.UTF-8

readonly lab=$PWD/.local/lab-kernels patches=$PWD/tests/lab
readonly lineages=(6.1 6.12)
# What a variant is made of: folders of tests/lab, each with a patch for each lineage, applied in this order.
readonly variants=(stock guarded stock-pmu guarded-pmu)
readonly -A patches_of=([stock]='' [guarded]='guard' [stock-pmu]='pretended-pmu' [guarded-pmu]='pretended-pmu guard')
readonly modules=(kvm.ko kvm-amd.ko kvm-intel.ko)
# Debian 12 has both lineages, and the compiler and pahole that it builds them with: the same source then makes the same machine code.
readonly debian=bookworm compiler=gcc-12
readonly -A suites=([debian]="$debian $debian-updates $debian-backports" [debian-security]="$debian-security")
readonly keyring=/usr/share/keyrings/debian-archive-keyring.gpg
readonly build_packages=("$compiler" bc bison flex libelf-dev libssl-dev make pahole patch xz-utils zstd)

say() { printf '%s\n' "$*" >&2; }
fail() { say "$@" && exit 1; }

# ---- the machine

require_debian() {
    if ! command -v apt-get >/dev/null || [ "$(dpkg --print-architecture)" != amd64 ]; then
        fail "The lab's kernels are Debian's for amd64, and are built by Debian's compiler: this machine is not Debian on amd64."
    fi
    if [ ! -r "$keyring" ]; then
        fail "$keyring is missing: Debian's signatures could not be checked. Install debian-archive-keyring, then run this again."
    fi
}

missing_packages() {
    local package
    for package in "${build_packages[@]}"; do
        [ "$(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || echo "$package"
    done
}

require_packages() {
    local missing
    mapfile -t missing < <(missing_packages)
    if ((${#missing[@]} == 0)); then return 0; fi
    local command=(apt-get -q -y -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 install --no-install-recommends "${missing[@]}")
    if ((EUID != 0)); then
        say "Packages to build a kernel module with are missing, and installing them takes root. Run this, then the same again:"
        fail "    sudo apt-get update && sudo ${command[*]}"
    fi
    say "Installing system packages: ${missing[*]}"
    apt-get -q -o DPkg::Lock::Timeout=120 -o Acquire::Retries=3 update >"$lab/apt-update.log" 2>&1 </dev/null ||
        say "The package lists could not be refreshed; trying with those that are here."
    if ! DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 "${command[@]}" >"$lab/apt-install.log" 2>&1 </dev/null; then
        say "$(tail -n 20 "$lab/apt-install.log")"
        fail "Could not install what building a kernel module takes. The command was: ${command[*]}"
    fi
}

# ---- the archive: an apt of its own, with its lists below .local, so that the machine's sources, lists and pins neither matter nor change

mirror_of() { # debian or debian-security -> where this machine gets it from, else Debian's own address
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        awk -v archive="$1" '{ sub(/\/+$/, "") } $0 ~ ("^https?://.*/" archive "$") && !found { print; found = 1 }
            END { if (!found) print "http://deb.debian.org/" archive }'
}

write_apt_configuration() {
    local archive suite
    mkdir -p "$lab"/apt/{state/lists/partial,cache/archives/partial,etc}
    : >"$lab/apt/state/status"
    for archive in "${!suites[@]}"; do
        for suite in ${suites[$archive]}; do
            printf 'deb [arch=amd64 signed-by=%s] %s %s main\n' "$keyring" "$(mirror_of "$archive")" "$suite"
        done
    done >"$lab/apt/etc/sources.list"
    # The machine's own settings are read before this file: they may name a proxy. Their hooks would work on the machine's lists.
    cat >"$lab/apt/etc/apt.conf" <<CONFIGURATION
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear Acquire::IndexTargets;
Acquire::IndexTargets::deb::Packages {
    MetaKey "\$(COMPONENT)/binary-\$(ARCHITECTURE)/Packages";
    flatMetaKey "Packages";
    ShortDescription "Packages";
    Description "\$(RELEASE)/\$(COMPONENT) \$(ARCHITECTURE) Packages";
};
Acquire::Languages "none";
Acquire::Retries "3";
APT::Architecture "amd64";
APT::Architectures "amd64";
// Users other than root cannot write below .local, and what is fetched is checked against Debian's signatures.
APT::Sandbox::User "root";
Dir::Etc::SourceList "$lab/apt/etc/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State "$lab/apt/state";
Dir::State::Lists "$lab/apt/state/lists";
Dir::State::status "$lab/apt/state/status";
Dir::Cache "$lab/apt/cache";
Dir::Cache::archives "$lab/apt/cache/archives";
CONFIGURATION
}

lab_apt() { apt-get -q -c "$lab/apt/etc/apt.conf" "$@"; }

read_archive() { # writes apt/packages: "package version" a line, of every suite, every version
    if [ -n "${archive_was_read:-}" ]; then return 0; fi
    say "Reading what Debian's archive has ..."
    write_apt_configuration
    # "any": apt would go on with the lists of yesterday, and say so only in a warning.
    if ! lab_apt -o APT::Update::Error-Mode=any update >"$lab/apt/update.log" 2>&1 </dev/null; then
        say "$(tail -n 20 "$lab/apt/update.log")"
        fail "The package lists of $debian could not be fetched. What they were asked from is in $lab/apt/etc/sources.list."
    fi
    lab_apt indextargets --format '$(FILENAME)' 'Created-By: Packages' | while IFS= read -r file; do
        /usr/lib/apt/apt-helper cat-file "$file"
    done | awk '/^Package: /{ package = $2 } /^Version: /{ print package, $2 }' >"$lab/apt/packages"
    archive_was_read=yes
}

# The newest ABI of a lineage of which the archive has everything in one version: image, headers and source.
newest_kernel() { # lineage -> "release version"
    local pattern release version newest_release='' newest=''
    pattern="linux-headers-${1//./\\.}\\.[0-9]+(-[0-9]+|\\+deb[0-9]+)-cloud-amd64"
    while read -r release version; do
        if ! grep -qxF "linux-source-$1 $version" "$lab/apt/packages" ||
            ! grep -qxF "linux-image-$release-unsigned $version" "$lab/apt/packages"; then continue; fi
        if [ -z "$newest" ] || dpkg --compare-versions "$version" gt "$newest"; then
            newest_release=$release newest=$version
        fi
    done < <(grep -xE "$pattern [^ ]+" "$lab/apt/packages" | sed 's/^linux-headers-//')
    if [ -z "$newest" ]; then
        fail "Debian's archive has no $1 kernel whose image, headers and source are of one version: looked in $(sed 's/.*] //' \
            "$lab/apt/etc/sources.list" | paste -sd, -)."
    fi
    echo "$newest_release $newest"
}

fetch_packages() { # folder, package=version ...
    local folder=$1
    shift
    mkdir -p "$folder"
    say "Fetching ${*%%=*} ..."
    if ! (cd "$folder" && lab_apt download "$@") >"$lab/apt/download.log" 2>&1 </dev/null; then
        say "$(tail -n 20 "$lab/apt/download.log")"
        fail "Debian's packages could not be fetched into $folder: $*"
    fi
}

# ---- one kernel

unpack_package() { # .deb, folder; the folder is there only when it is whole
    rm -rf "$2" "$2.part"
    dpkg-deb --extract "$1" "$2.part"
    mv "$2.part" "$2"
}

fetch_kernel() { # lineage; sets `release`, makes $lab/<release> with debian/, vmlinuz and built-from, and $lab/source/<release>
    local lineage=$1 version folder packages
    read_archive
    read -r release version < <(newest_kernel "$lineage")
    folder=$lab/$release packages=$lab/packages/$release
    if [ ! -e "$folder/built-from" ] || [ ! -d "$lab/source/$release" ]; then
        rm -rf "$folder" "$packages"
        fetch_packages "$packages" "linux-image-$release-unsigned=$version" "linux-headers-$release=$version" \
            "linux-source-$lineage=$version"
        mkdir -p "$folder"
        unpack_package "$(echo "$packages"/linux-image-*.deb)" "$folder/debian"
        ln -sfn "debian/boot/vmlinuz-$release" "$folder/vmlinuz"
        unpack_package "$(echo "$packages"/linux-headers-*.deb)" "$packages/headers"
        unpack_source "$lineage" "$release" "$packages"
        prepare_source "$lineage" "$release" "$packages/headers/usr/src/linux-headers-$release"
        {
            echo "lineage $lineage"
            echo "release $release"
            echo "version $version"
            echo "compiler $("$compiler" --version | head -n 1)"
            echo "pahole $(pahole --version)"
        } >"$folder/built-from.part"
        mv "$folder/built-from.part" "$folder/built-from"
        rm -rf "$packages"
    fi
}

choose_kernel() { # lineage, release: what was chosen before makes room
    local before
    before=$(readlink "$lab/$1" || true)
    ln -sfn "$2" "$lab/$1"
    if [ -n "$before" ] && [ "$before" != "$2" ]; then rm -rf "${lab:?}/$before" "$lab/source/$before" "$lab/source/$before".*; fi
}

unpack_source() { # lineage, release, folder of packages
    local source=$lab/source/$2
    say "Unpacking the source of $2 ..."
    rm -rf "$source"
    mkdir -p "$source"
    # Kconfig files and headers are needed of everything, the code of nothing but the core, x86 and KVM.
    dpkg-deb --fsys-tarfile "$(echo "$3"/linux-source-*.deb)" | tar --extract --to-stdout "./usr/src/linux-source-$1.tar.xz" |
        xz --decompress | tar --extract --directory "$source" --strip-components 1 --no-same-owner \
            --exclude '*/drivers/*.[chS]' --exclude '*/sound/*.[chS]' --exclude '*/fs/*.[chS]' --exclude '*/net/*.[chS]'
    # What a patch is applied to, and taken back from.
    mkdir -p "$source/pristine/arch/x86" "$source/pristine/virt"
    cp -R "$source/arch/x86/kvm" "$source/pristine/arch/x86/kvm"
    cp -R "$source/virt/kvm" "$source/pristine/virt/kvm"
}

kernel_make() { # release, arguments of make; its output goes to a log beside the source
    local release=$1 log=$lab/source/$1.log
    shift
    # The name is what makes vermagic equal to that of the kernel which is to load the modules.
    if ! make -C "$lab/source/$release" -j"$(nproc)" KERNELRELEASE="$release" CC="$compiler" HOSTCC="$compiler" "$@" \
        >"$log" 2>&1 </dev/null; then
        say "$(tail -n 40 "$log")"
        fail "make $* failed in the source of $release; the whole output is in $log."
    fi
}

prepare_source() { # lineage, release, folder of headers
    local source=$lab/source/$2
    say "Preparing the source of $2 ..."
    cp "$3/.config" "$source/.config"
    kernel_make "$2" olddefconfig
    kernel_make "$2" modules_prepare
    # The symbols of the kernel and of all modules but KVM's own, which are about to be built.
    grep -v -P '\tarch/x86/kvm/' "$3/Module.symvers" >"$source/Module.symvers"
    # The modules' BTF is built upon that of the kernel, which is in its image.
    "$source/scripts/extract-vmlinux" "$lab/$2/vmlinuz" >"$source/vmlinux"
}

# ---- one variant of it

patches_for() { # variant, lineage -> a file a line
    local folder
    for folder in ${patches_of[$1]}; do printf '%s\n' "$patches/$folder/$2.patch"; done
}

apply_patches() { # release, patch ...
    local source=$lab/source/$1 patch said
    for patch in "${@:2}"; do
        if ! said=$(patch --directory "$source" --strip 1 --batch --forward --fuzz 0 --no-backup-if-mismatch --reject-file - \
            --input "$patch" 2>&1); then
            say "$said"
            fail "$patch does not fit the source of $1, which has changed there. Bring the patch up to date, then run this again."
        fi
    done
}

restore_pristine() { # source: only what differs is written, so that only that is compiled again
    (cd "$1/pristine" && find . -type f -print0) | while IFS= read -r -d '' file; do
        if ! cmp -s "$1/pristine/$file" "$1/$file"; then cp "$1/pristine/$file" "$1/$file"; fi
    done
}

build_variant() { # lineage, release, variant
    local release=$2 source=$lab/source/$2 folder=$lab/$2/$3 applied=() of file
    mapfile -t applied < <(patches_for "$3" "$1")
    for file in "${applied[@]}"; do
        if [ ! -r "$file" ]; then fail "$file is missing: it is what makes the variant $3 of the $1 kernel."; fi
    done
    of=$(cat /dev/null "${applied[@]}" | sha256sum | cut -d ' ' -f 1)
    if [ "$(cat "$folder/patches.sha256" 2>/dev/null)" = "$of" ]; then return 0; fi
    require_packages
    say "Building $release, $3 ..."
    # A build that was ended in its middle may have left half an object.
    if [ -e "$source/building" ]; then
        find "$source/arch/x86/kvm" "$source/virt/kvm" \( -name '*.o' -o -name '*.ko' -o -name '.*.cmd' \) -delete
    fi
    restore_pristine "$source"
    apply_patches "$release" "${applied[@]}"
    : >"$source/building"
    kernel_make "$release" M=arch/x86/kvm modules
    rm -rf "$folder" "$folder.part"
    mkdir "$folder.part"
    for file in "${modules[@]}"; do
        # Symbols and BTF stay, as in Debian's own.
        strip --strip-debug -o "$folder.part/$file" "$source/arch/x86/kvm/$file"
    done
    echo "$of" >"$folder.part/patches.sha256"
    mv "$folder.part" "$folder"
    rm -f "$source/building"
}

# ---- all of it

newest=''
wanted=()
while (($# > 0)); do
    case $1 in
        --newest) newest=yes ;;
        6.1 | 6.12) wanted+=("$1") ;;
        *) say "usage: $0 [--newest] [6.1] [6.12]" && exit 64 ;;
    esac
    shift
done
if ((${#wanted[@]} == 0)); then wanted=("${lineages[@]}"); fi

require_debian
mkdir -p "$lab"
exec 9>"$lab/lock"
if ! flock --nonblock 9; then
    say "Another run builds the lab's kernels; waiting for it ..."
    flock 9
fi
for lineage in "${wanted[@]}"; do
    release=$(readlink "$lab/$lineage" || true)
    if [ -n "$newest" ] || [ ! -e "$lab/$release/built-from" ] || [ ! -d "$lab/source/$release" ]; then
        require_packages
        fetch_kernel "$lineage"
    fi
    for variant in "${variants[@]}"; do build_variant "$lineage" "$release" "$variant"; done
    choose_kernel "$lineage" "$release"
    printf '%s\n' "$lab/$release"
done
