#!/usr/bin/env bash
# Prints the log of the job and follows it until the job ends.
# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

if [[ $(running_job) == "$RUN_ID" ]]; then
  exec tail --lines=200 --follow --sleep-interval=0.5 --pid="$(<"$job/pid")" "$job/log"
fi
exec tail --lines=200 "$job/log"
