#!/usr/bin/env bash
# Says what has become of the job: RUNNING, EXITED code, LOST, NONE, or BUSY with
# another one.
# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

running=$(running_job)
if [[ -n $running && $running != "$RUN_ID" ]]; then
  reply BUSY "$running"
elif [[ -n $running ]]; then
  reply RUNNING
elif [[ -e $job/exit_code ]]; then
  reply EXITED "$(<"$job/exit_code")"
elif [[ -e $job/log ]]; then
  reply LOST
else
  reply NONE
fi
