#!/bin/bash
# Two regions on one machine: two network namespaces with 40 ms of round trip and 100 Mbit/s between
# them. A router and nodes in one, nodes in the other, CURVE keys on every socket; prompts over HTTP
# and the SDK. Shows what the cluster measures of its links, its placement, and tokens/s.
#
#   sudo examples/two-regions/run.sh [MODEL]     a folder or GGUF file; default: the demo model
#   sudo examples/two-regions/run.sh --stay      leave the cluster up until Ctrl-C
#
# From the environment: ROUND_TRIP_MS, RATE_MBIT, NODES_PER_REGION, REQUESTS, TOKENS, PYTHON,
# WIRE (netem or tun; default: netem where the kernel has it), RESULT (a file for the figures).
#
# Needs root, for the namespaces. Ends with 77 and a reason where it cannot run. Everything is taken
# down at its end however it ends; after a `kill -9` the next run takes down what that left.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
round_trip_ms=${ROUND_TRIP_MS:-40}
rate_mbit=${RATE_MBIT:-100}
folder=/run/helix-mq-two-regions
east=helix-mq-east west=helix-mq-west
east_ip=10.77.0.1 west_ip=10.77.0.2

stay=no model=
for argument in "$@"; do
  case $argument in
    --stay) stay=yes ;;
    -*) echo "run.sh: no such option: $argument; see its first lines" >&2; exit 2 ;;
    *) model=$(realpath -- "$argument") ;;
  esac
done

cannot() { echo "run.sh: cannot run here: $*" >&2; exit 77; }

[ "$(uname -s)" = Linux ] || cannot "network namespaces are Linux's; this is $(uname -s)"
[ "$(id -u)" = 0 ] || cannot "network namespaces need root; run it with sudo"
command -v ip >/dev/null || cannot "there is no \`ip\`; install iproute2"
command -v flock >/dev/null || cannot "there is no \`flock\`; install util-linux"
if [ -z "${PYTHON:-}" ]; then
  PYTHON=$root/.venv/bin/python
  [ -x "$PYTHON" ] || PYTHON=$(command -v python3) || cannot "there is no Python; set PYTHON"
fi
"$PYTHON" -c 'import helix_mq, router, nodes' 2>/dev/null \
  || cannot "$PYTHON has no helix_mq; run \`make install\`, or set PYTHON"

# One run at a time: the namespaces have names. The lock goes with this process, and only with it.
exec 9>/run/helix-mq-two-regions.lock
flock -n 9 || cannot "another run of it is going on"

pids_in() { ip netns pids "$1" 2>/dev/null || true; }

take_down() {
  trap '' INT TERM
  local name pids
  for name in $west $east; do
    pids=$(pids_in $name)
    # All that runs in these namespaces was started there by this script.
    [ -z "$pids" ] || kill -TERM $pids 2>/dev/null || true
  done
  for _ in $(seq 50); do
    [ -n "$(pids_in $east)$(pids_in $west)" ] || break
    sleep 0.1
  done
  for name in $west $east; do
    pids=$(pids_in $name)
    [ -z "$pids" ] || kill -KILL $pids 2>/dev/null || true
    ip netns del $name 2>/dev/null || true
  done
  rm -rf "$folder"
}

take_down
trap 'code=$?; take_down; exit $code' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
umask 077
mkdir -p "$folder"

for name in $east $west; do
  problem=$(ip netns add $name 2>&1) || cannot "network namespaces are refused: $problem"
  ip -n $name link set lo up
done

# Runs a program in a region, without the lock: what is left of a killed run must not hold it.
in_region() (
  exec 9>&-
  region=$1
  shift
  exec ip netns exec "$region" env OMP_NUM_THREADS=1 "$@"
)
# The same in the background, with a log. No shell may stay between, as it would hold the lock.
start_in() {
  local region=$1 log=$2
  shift 2
  (exec 9>&- && exec ip netns exec "$region" env OMP_NUM_THREADS=1 "$@" >"$log" 2>&1) &
}

one_way_ms=$(awk "BEGIN { print $round_trip_ms / 2 }")
lay_netem() {
  command -v tc >/dev/null || return 1
  ip -n $east link add wan type veth peer name wan netns $west || return 1
  local name
  for name in $east $west; do
    # 2000 packets: enough for what is under way at this rate, and 0.2 s more.
    tc -n $name qdisc add dev wan root netem delay "${one_way_ms}ms" rate "${rate_mbit}mbit" \
      limit 2000 2>/dev/null || { ip -n $east link del wan; return 1; }
  done
}
lay_tun() {
  [ -c /dev/net/tun ] || cannot "the kernel has no netem (module sch_netem), nor /dev/net/tun"
  start_in $east "$folder/wire.log" "$PYTHON" "$here/wire.py" $west \
    --one-way-ms "$one_way_ms" --rate-mbit "$rate_mbit"
  for _ in $(seq 100); do
    ip -n $west link show wan >/dev/null 2>&1 && return
    sleep 0.1
  done
  cannot "no device could be made with /dev/net/tun"
}
case ${WIRE:-} in
  netem) lay_netem || cannot "tc's netem is missing: modprobe sch_netem, or leave WIRE out"; wire=netem ;;
  tun) lay_tun; wire=wire.py ;;
  *) if lay_netem; then wire=netem; else lay_tun; wire="wire.py, as this kernel has no netem"; fi ;;
esac
ip -n $east addr add $east_ip/24 dev wan
ip -n $west addr add $west_ip/24 dev wan
ip -n $east link set wan up
ip -n $west link set wan up
echo "between the regions: $round_trip_ms ms round trip, $rate_mbit Mbit/s each way ($wire)"

[ -n "$model" ] || model=$("$PYTHON" -m helix_mq model demo)
in_region $east "$PYTHON" "$here/configure.py" "$folder" --model "$model" --east $east_ip --west $west_ip \
  --nodes-per-region "${NODES_PER_REGION:-2}"

start_in $east "$folder/router.log" "$PYTHON" -m helix_mq router --config "$folder/router.toml"
for settings in "$folder"/east-*.toml "$folder"/west-*.toml; do
  name=$(basename "$settings" .toml)
  start_in helix-mq-"${name%-*}" "$folder/$name.log" \
    "$PYTHON" -m helix_mq node --config "$settings"
done

if ! in_region $east "$PYTHON" "$here/show.py" --keys "$folder/keys" \
  --router "tcp://$east_ip:7100" --requests "${REQUESTS:-8}" --tokens "${TOKENS:-32}" \
  ${RESULT:+--json "$RESULT"}; then
  echo "run.sh: the last lines of every log:" >&2
  tail -n 4 "$folder"/*.log >&2
  exit 1
fi

if [ $stay = yes ]; then
  echo "the cluster stays up until Ctrl-C; from another shell:"
  echo "  sudo ip netns exec $east curl http://127.0.0.1:8000/ready"
  echo "  logs, settings and keys: $folder"
  # In the background, so that a signal is not kept waiting for it.
  while :; do
    sleep 3600 9>&- &
    wait $!
  done
fi
