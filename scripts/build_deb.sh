#!/usr/bin/env bash
# Builds the Debian package of this checkout: `build_deb.sh [--version-suffix SUFFIX] [--output DIR]`, by default into dist/.
# A build of the same checkout with '--version-suffix +site2' is newer than the one without. Takes no root but for system
# packages that are missing. The package runs on the Python of the distribution that it is built on, and so on that release only.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
umask 022

say() { printf '%s\n' "$*" >&2; }
usage() { say "usage: $0 [--version-suffix SUFFIX] [--output DIR]" && exit 64; }

suffix='' output=dist
while (($# > 0)); do
    if (($# < 2)); then usage; fi
    case $1 in
        --version-suffix) suffix=$2 ;;
        --output) output=$2 ;;
        *) usage ;;
    esac
    shift 2
done

scripts/system_packages.sh deb
if ! git rev-parse --quiet --verify HEAD >/dev/null 2>&1; then
    say "The package is made of the files that git lists, and dated as its last commit: $PWD is no git checkout with a commit."
    exit 1
fi
if ! /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    say "The package would run on /usr/bin/python3, which is $(/usr/bin/python3 --version). It takes 3.11: build on Debian 12 or newer."
    exit 1
fi
if [ ! -x .venv/bin/uv ]; then scripts/set_up.sh host; fi

# 1.2.0rc1 comes before 1.2.0, which dpkg sees by the tilde only.
version=$(sed -nE 's/^__version__ = "(.*)"$/\1/p' agent/exitguard/__init__.py | sed -E 's/\.?(a|b|rc|dev)([0-9]+)$/~\1\2/')$suffix
if ! problem=$(dpkg --validate-version "$version" 2>&1); then
    say "$problem"
    say "The version of the package is agent/exitguard/__init__.py's with the suffix ${suffix:-(none)}: expected letters, digits and . + ~ only."
    exit 1
fi

mkdir -p .local/deb "$output"
output=$(cd "$output" && pwd)
place=$(mktemp -d "$PWD/.local/deb/build.XXXXXX")
trap 'rm -rf "$place"' EXIT
tree=$place/exitguard
mkdir "$tree"
# What is tracked, and what is new and not ignored: never .venv, .local or a forgotten key.
git ls-files -z --cached --others --exclude-standard -- . | while IFS= read -r -d '' file; do
    if [ -e "$file" ] || [ -L "$file" ]; then printf '%s\0' "$file"; fi
done | tar --null --files-from - --create | tar --extract --directory "$tree"
cp -R "$tree/deploy/debian" "$tree/debian"

# The date of a build is that of what was built, so that the same commit makes the same package.
date=$(date --utc --rfc-email --date "@${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}")
maintainer=$(sed -n 's/^Maintainer: //p' "$tree/debian/control")
if [ -n "${DEBEMAIL:-}" ]; then maintainer="${DEBFULLNAME:-exitguard maintainers} <$DEBEMAIL>"; fi
cat >"$tree/debian/changelog" <<END
exitguard ($version) unstable; urgency=medium

  * Built from the source of version $version; see changelog.gz for what changed.

 -- $maintainer  $date
END

# Compiled modules fit the libvirt, the Python and the compiler that they were made with: others have another cache.
cache=.local/deb/uv-$(dpkg-query --show --showformat '${Package} ${Version} ' libvirt-dev python3-dev gcc dpkg-dev | sha256sum | cut -c 1-12)
find .local/deb -mindepth 1 -maxdepth 1 -name 'uv-*' ! -path "$cache" -exec rm -rf {} +
# debhelper gives the build an empty home, and with it none of the user's settings for uv, such as a mirror.
settings=${XDG_CONFIG_HOME:-$HOME/.config}/uv/uv.toml
if [ -z "${UV_CONFIG_FILE:-}" ] && [ -r "$settings" ]; then export UV_CONFIG_FILE=$settings; fi
log=$place/log
if ! (cd "$tree" && UV=$OLDPWD/.venv/bin/uv UV_CACHE_DIR=$OLDPWD/$cache UV_PYTHON_DOWNLOADS=never \
    dpkg-buildpackage --build=binary --no-sign) >"$log" 2>&1 </dev/null; then
    say "$(tail -n 60 "$log")"
    say "The package could not be built; the last lines of what dpkg-buildpackage said are above."
    exit 1
fi
built=$place/exitguard_${version}_$(dpkg --print-architecture).deb
mv "$built" "$output/"
printf '%s\n' "$output/${built##*/}"
