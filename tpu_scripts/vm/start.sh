#!/usr/bin/env bash
# Starts the job, away from this connection, unless it runs already.
# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

trap 'reply FAILED start' ERR
mkdir -p "$job"
other=$(running_job)
if [[ -n $other && $other != "$RUN_ID" ]]; then
  reply BUSY "$other"
  exit 0
fi
if [[ -z $other ]]; then
  rm -f "$job/exit_code"
  setsid nohup bash "$checkout/tpu_scripts/vm/job.sh" >>"$job/log" 2>&1 </dev/null &
  # Until the job holds the lock it would look as if it had died.
  for _ in $(seq 100); do
    [[ -z $(running_job) && ! -e $job/exit_code ]] || break
    sleep 0.1
  done
fi
reply STARTED
