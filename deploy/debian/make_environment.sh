#!/usr/bin/env bash
# Makes /opt/exitguard below ROOT: `make_environment.sh ROOT`, run in a copy of the checkout. A virtual environment of the distribution's
# Python with what uv.lock names, every download checked against its hash there, the build tools of its packages included.
# Nothing in it names the place where it was built. $UV is the uv to use, $UV_CACHE_DIR where it keeps its downloads.
set -euo pipefail
readonly root=$1
readonly environment=$root/opt/exitguard python=/usr/bin/python3
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
readonly version

requirements=$(mktemp -d)
trap 'rm -rf "$requirements"' EXIT
locked=(env -u VIRTUAL_ENV "$UV" export --quiet --frozen --no-dev --no-emit-project --no-header --no-annotate --python "$python")
"${locked[@]}" --extra host --output-file "$requirements/host.txt"
# The build back ends (hatchling, setuptools) are somewhere among all that is locked.
"${locked[@]}" --all-extras --output-file "$requirements/build.txt"

mkdir -p "$environment/bin" "$environment/lib/python$version/site-packages"
ln -s "/usr/bin/python$version" "$environment/bin/python$version"
ln -s "python$version" "$environment/bin/python3"
ln -s python3 "$environment/bin/python"
cat >"$environment/pyvenv.cfg" <<END
home = /usr/bin
include-system-site-packages = false
version = $("$python" -c 'import platform; print(platform.python_version())')
END

# Copies: a link into uv's cache would let the stripping below change what the next build finds there.
install=("$UV" pip install --quiet --no-progress --link-mode copy --python "$environment/bin/python" --no-deps)
checked=(--build-constraints "$requirements/build.txt" --require-build-hashes)
"${install[@]}" --require-hashes "${checked[@]}" --requirements "$requirements/host.txt"
"${install[@]}" "${checked[@]}" .

# Of the commands only exitguard's own, and the one that it carries remedies out with: the others are their packages' and no part of
# this one's promise.
find "$environment/bin" -type f ! -name exitguard ! -name ansible-playbook -delete
sed -i "1s|.*|#!/opt/exitguard/bin/python -IB|" "$environment/bin/exitguard" "$environment/bin/ansible-playbook"
# What an installer notes for itself: where a file came from, and hashes from before the stripping. Without a RECORD no other
# installer takes these packages away from dpkg.
find "$environment" -type f \( -path '*.dist-info/RECORD' -o -path '*.dist-info/direct_url.json' -o -path '*.dist-info/uv_*' \
    -o -path '*.dist-info/REQUESTED' -o -name '_virtualenv.*' -o -name '.lock' -o -name '.gitignore' \) -delete
find "$environment" -type f -path '*.dist-info/INSTALLER' -exec sh -c 'echo dpkg >"$1"' sh {} \;
find "$environment" -name __pycache__ -type d -prune -exec rm -rf {} +
# Never compared with its source again: dpkg changes both together, and a comparison by time would not survive an archive.
"$python" -I -m compileall -q -j 0 --invalidation-mode unchecked-hash -s "$root" -p / "$environment/lib"
