#!/usr/bin/env bash
# A hub with a simulated fleet, and its report: demo.sh DIRECTORY [HOSTS]. What it starts it ends; the report and the database stay.
set -euo pipefail

directory=${1:?usage: demo.sh DIRECTORY [HOSTS]}
hosts=${2:-1000}
bin=$(dirname "$0")/../.venv/bin
began=$SECONDS

mkdir -p "$directory"
rm -f "$directory"/{hub.sqlite,hub.sqlite-wal,hub.sqlite-shm,keys,secret,token,hub.log}
umask 077
# Guests of the simulated hosts migrate within their rack.
sed 's/^    check: fleet_qemu_mixed$/&\n    parameters: {groups: ["(sim-r[0-9]+)-.*"]}/' policies/pmu-off.yaml > "$directory/policy.yaml"
printf 'policy_files: [%s/policy.yaml]\n' "$PWD/$directory" > "$directory/config.yaml"
export EXITGUARD_CONFIG=$directory/config.yaml EXITGUARD_HUB_DATABASE=$directory/hub.sqlite EXITGUARD_HUB_TOKEN_FILE=$PWD/$directory/token
unset EXITGUARD_HUB_URL

echo "1. The past of $hosts hosts, into a hub's database: what they said a day ago and an hour ago."
now=$(date -u +%Y-%m-%dT%H:%M:%SZ)
hour_ago=$(date -u -d "$now - 1 hour" +%Y-%m-%dT%H:%M:%SZ)
"$bin/exitguard" simulate --hosts "$hosts" --domains 20 --looks 2 --interval-minutes 1380 --at "$hour_ago" --keys "$directory/keys" --workers 2 --load "$EXITGUARD_HUB_DATABASE"
"$bin/exitguard" hub token --name demo > "$directory/token" 2> /dev/null

port=$("$bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$bin/exitguard" hub serve --listen "127.0.0.1:$port" > "$directory/hub.log" 2>&1 &
hub=$!
trap 'kill "$hub" 2> /dev/null || true; wait "$hub" 2> /dev/null || true' EXIT
export EXITGUARD_HUB_URL=http://127.0.0.1:$port
"$bin/python" - "$port" << 'PYTHON'
import socket, sys, time
until = time.monotonic() + 30
while True:
    try:
        socket.create_connection(("127.0.0.1", int(sys.argv[1])), 1).close()
        break
    except OSError:
        if time.monotonic() > until:
            sys.exit("the hub does not start: see hub.log beside the report")
        time.sleep(0.05)
PYTHON

echo "2. The hub runs at $EXITGUARD_HUB_URL; now each host pushes to it what it sees now, with a key of its own."
"$bin/exitguard" simulate --hosts "$hosts" --domains 20 --looks 3 --from-look 2 --interval-minutes 60 --at "$now" --keys "$directory/keys" --hub "$EXITGUARD_HUB_URL"

echo '3. exitguard report --fleet, as a page and as a table:'
status=0
"$bin/exitguard" report --fleet --group-by kernel --format "html:$directory/fleet.html" --format "table:$directory/fleet.txt" || status=$?
case $status in 0 | 2 | 3) ;; *) exit "$status" ;; esac
head -n 40 "$directory/fleet.txt"
echo "..."
echo "Done in $((SECONDS - began)) s. The page: $directory/fleet.html; all of the table: $directory/fleet.txt."
echo "Go on with: EXITGUARD_HUB_DATABASE=$directory/hub.sqlite $bin/exitguard hub serve, and EXITGUARD_HUB_URL and EXITGUARD_HUB_TOKEN_FILE=$directory/token for report --fleet --since ..."
