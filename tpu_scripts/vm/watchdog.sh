#!/usr/bin/env bash
# Startup script of the machine: deletes it max-hours after its first boot,
# whatever has become of the computer that asked for it. The metadata server says
# when and how. A reboot does not start the hours anew.
set -euo pipefail

state=${WATCHDOG_STATE:-/var/lib/tpu_scripts}

attribute() {
  curl --fail --silent --show-error --retry 10 --retry-connrefused \
    --header 'Metadata-Flavor: Google' \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

mkdir -p "$state"
if [[ ! -e $state/deadline ]]; then
  hours=$(attribute max-hours)
  [[ $hours =~ ^[1-9][0-9]*$ ]] || hours=1
  echo $(($(date +%s) + hours * 3600)) >"$state/deadline.new"
  mv "$state/deadline.new" "$state/deadline"
fi
command=$(attribute delete-command)
seconds=$(($(<"$state/deadline") - $(date +%s)))
((seconds > 0)) || seconds=1

# Again until it works: the permission may be granted later.
systemd-run --unit=tpu-watchdog --on-active="${seconds}s" \
  --setenv=HOME=/root --setenv=PATH="$PATH:/snap/bin" \
  /bin/bash -c "until $command; do sleep 60; done"
echo "tpu watchdog: in $seconds s: $command"
