#!/bin/bash
# journey.sh: what `make run` shows. Folders, cgroup and devices of its own; nothing is left afterwards.
# KEEP=1 stays up (until Ctrl-C) with the devices plugged.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
dir=$(mktemp -d /tmp/berth-run.XXXXXX)
parent=berth-run-$$
agent=
folders=(--run-dir "$dir/run" --state-dir "$dir/state" --config-dir "$dir/config")
berth() { "$top/target/release/berth" "${folders[@]}" "$@"; }
step() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
loop() { python3 -c 'import fcntl, sys; fcntl.ioctl(open("/dev/loop-control"), {"add": 0x4c80, "remove": 0x4c81}[sys.argv[1]], 77)' "$1"; }
until_true() { # until_true WHAT COMMAND...
  local what=$1 i; shift
  for i in $(seq 600); do if "$@" >/dev/null 2>&1; then return 0; fi; sleep 0.1; done
  echo "journey: $what: not within 60 s; the agent's log:" >&2; tail -n 40 "$dir/agent.log" >&2; exit 1
}
runs() { berth ps -o json | tr -d ' \n' | grep -q "\"workload\":\"$1\"[^}]*\"phase\":\"running\""; }
gone() { ! berth ps -o json | tr -d ' \n' | grep -q "\"workload\":\"$1\""; }
leave() {
  local status=$?
  trap - EXIT
  ip link delete brun0p 2>/dev/null || true
  [ -e /sys/block/loop77 ] && loop remove 2>/dev/null || true
  if [ -n "$agent" ]; then
    berth stop --all >/dev/null 2>&1 || true
    kill "$agent" 2>/dev/null || true; wait "$agent" 2>/dev/null || true
    for pid in $(pgrep -f -- "launcher .*$dir/run" || true); do kill "$pid" 2>/dev/null || true; done
  fi
  for _ in $(seq 20); do [ -z "$(left)" ] && break; sleep 0.2; done
  if [ -n "$(left)" ]; then echo "journey: left behind:"; left; status=1; else echo "nothing is left: no cgroup, mount, namespace, process or file of $parent"; fi
  [ $status = 0 ] && rm -rf "$dir" || echo "journey: failed; its folder is kept: $dir"
  exit $status
}
left() {
  find /sys/fs/cgroup -type d -name "$parent*" 2>/dev/null
  grep -F "$dir" /proc/mounts || true
  for p in /proc/[0-9]*; do
    local words; words=$(cat "$p/cmdline" "$p/cgroup" 2>/dev/null | tr '\0' ' ') || continue
    case $words in
      *"$dir/run"*|*"$parent"*) [ "${p#/proc/}" = $$ ] || echo "process ${p#/proc/} $(echo "$words" | head -n 1)" ;;
    esac
  done
}
trap leave EXIT
trap 'exit 130' INT TERM
[ -e /sys/block/loop77 ] && { echo "journey: /dev/loop77 is there already; remove it first"; exit 1; }

step "images"
mkdir -p "$dir"/{run,state,config}
for archive in "$top"/target/samples/*.tar; do berth image load "$archive"; done
berth image ls

step "agent"
"$top/target/release/berth" "${folders[@]}" agent --cgroup-parent "$parent" --metrics 127.0.0.1:0 >"$dir/agent.log" 2>&1 &
agent=$!
until_true "the agent answers" berth ps
berth check "$here/journey.yaml"
berth plan "$here/journey.yaml"
berth apply "$here/journey.yaml"

step "plug: a loop device and a virtual Ethernet pair"
loop add
ip link add brun0 type veth peer name brun0p
until_true "the disk's container runs" runs disk
until_true "the interface's container runs" runs nic
berth ps
until_true "the disk's worker speaks" sh -c "'$top/target/release/berth' --run-dir '$dir/run' logs disk-loop77 | grep -q event"

step "why: berth device explain"
berth device explain /sys/devices/virtual/block/loop77

step "the proof, read back from the kernel"
berth prove

step "its own words"
sleep 1.5
for name in $(berth ps -o json | tr -d ' \n' | grep -o '"name":"[^"]*"' | cut -d'"' -f4 | sort -u); do
  echo "--- $name"; berth logs "$name" | tail -n 2
done

if [ "${KEEP:-}" = 1 ]; then
  step "up: Ctrl-C unplugs everything and leaves"
  echo "berth='$top/target/release/berth --run-dir $dir/run --state-dir $dir/state --config-dir $dir/config'"
  while sleep 3600; do :; done
fi

step "unplug"
loop remove || { until_true "loop77 can be removed" loop remove; }
ip link delete brun0p
until_true "the disk's container is gone" gone disk
until_true "the interface's container is gone" gone nic
berth ps
berth events | tail -n 20

step "leave"
