# shellcheck shell=bash
# shellcheck disable=SC2034,SC2153  # the files of lib/ share their variables
# From nothing to a machine and back, on the functions of a provider.

# Sets STATE, OURS, REASON, WORKERS, RESOURCE_RUN_ID and DELETE_AFTER. In a dry
# run the state is the one that the verb expects.
look() {
  STATE=UNKNOWN OURS=no REASON='' WORKERS=1 RESOURCE_RUN_ID='' DELETE_AFTER=''
  provider_look
  if [[ $DRY_RUN == yes ]]; then
    STATE=$EXPECTED OURS=yes RESOURCE_RUN_ID=$RUN_ID WORKERS=1 REASON=$EXPECTED
  fi
}

# Looks until there is an answer, a few times.
look_surely() {
  local attempt
  for attempt in 1 2 3 4 5; do
    look
    [[ $STATE == UNKNOWN ]] || return 0
    ((attempt == 5)) || pause "$POLL_SECONDS"
  done
  fail "no answer about $TPU_NAME from Google Cloud; see above."
}

refuse_foreign() {
  [[ $OURS == yes ]] ||
    fail "$TPU_NAME in $ZONE exists and is not ours (it lacks managed_by=$MANAGED_BY," \
      "owner=$OWNER): left alone. Set another TPU_NAME."
}

refuse_other_run() {
  [[ $RESOURCE_RUN_ID == "$RUN_ID" ]] ||
    fail "$TPU_NAME belongs to the run $RESOURCE_RUN_ID, not to $RUN_ID." \
      "Set another TPU_NAME, or delete it first."
}

# Asks for the machine. Where there is no queue, again while there is no capacity.
create_resource() {
  local deadline=$((SECONDS + WAIT_MINUTES * 60))
  say "creating $TPU_NAME: $ACCELERATOR in $ZONE, $(
    [[ $SPOT == yes ]] && echo spot || echo on demand
  )"
  until provider_create 2>"$WORK/create_errors"; do
    cat "$WORK/create_errors" >&2
    # Another terminal may have been faster, and a failure may have come after
    # the request was taken.
    look_surely
    if [[ $STATE != ABSENT ]]; then
      refuse_foreign
      refuse_other_run
      say "$TPU_NAME exists all the same ($REASON)."
      return 0
    fi
    grep -qE 'RESOURCE_POOL_EXHAUSTED|not have enough resources' "$WORK/create_errors" ||
      fail "$TPU_NAME was not created; Google's reason is above."
    ((SECONDS < deadline)) ||
      fail "there was no capacity for WAIT_MINUTES $WAIT_MINUTES."
    say "no capacity; asking again in $POLL_SECONDS s"
    pause "$POLL_SECONDS"
  done
  cat "$WORK/create_errors" >&2
  EXPECTED=ACTIVE
}

# Waits for a machine. Returns 1 if it was taken away meanwhile.
wait_until_active() {
  local deadline=$((SECONDS + WAIT_MINUTES * 60)) shown=''
  while :; do
    look
    case $STATE in
      ACTIVE) say "$TPU_NAME is ready: $WORKERS worker(s)." && return 0 ;;
      PREEMPTED) return 1 ;;
      FAILED) fail "$TPU_NAME failed: $REASON" ;;
      ABSENT | DELETING) fail "$TPU_NAME is gone, or going: somebody deleted it." ;;
    esac
    ((SECONDS < deadline)) ||
      fail "$TPU_NAME is not ready after WAIT_MINUTES $WAIT_MINUTES (${REASON:-no answer})."
    [[ $REASON == "$shown" ]] || say "waiting for $TPU_NAME: ${REASON:-no answer}"
    shown=$REASON
    pause "$POLL_SECONDS"
  done
}

# Deletes the resource, if it is there and ours, and makes sure that it is gone.
delete_resource() {
  local deadline=$((SECONDS + LOST_MINUTES * 60)) gone='is already gone'
  provider_delete_line
  while :; do
    look
    if [[ $STATE != ABSENT && $STATE != UNKNOWN ]]; then
      refuse_foreign
      say "deleting $TPU_NAME ($REASON)"
      gone='is gone'
      if provider_delete; then EXPECTED=ABSENT; fi
      look
    fi
    if [[ $STATE == ABSENT ]] && provider_clean; then
      say "$TPU_NAME $gone (project $PROJECT, zone $ZONE)."
      return 0
    fi
    ((SECONDS < deadline)) ||
      fail "$TPU_NAME MAY STILL BE THERE (${REASON:-no answer}) AND COST MONEY. Delete it:
  $(shell_quote "${DELETE_LINE[@]}")"
    say "$TPU_NAME is still there (${REASON:-no answer}); again"
    pause "$POLL_SECONDS"
  done
}

# Makes sure that there is a machine, whatever there is now.
obtain_resource() {
  look_surely
  if [[ $STATE != ABSENT ]]; then
    refuse_foreign
    refuse_other_run
  fi
  # From here on what is there is there for this run.
  DELETE_AT_EXIT=yes
  if [[ $STATE == PREEMPTED || $STATE == FAILED || $STATE == DELETING ]]; then
    delete_resource
    STATE=ABSENT
  fi
  [[ $STATE != ABSENT ]] || create_resource
  wait_until_active
}

# The one thing that must happen however run and resume end.
at_exit() {
  local code=$?
  # Nothing may stop what follows: not a second Ctrl-C, not a closed terminal.
  # What gcloud starts inherits this.
  trap '' INT TERM HUP PIPE
  trap - EXIT
  set +e
  if [[ $DELETE_AT_EXIT == yes && $KEEP == yes ]]; then
    say "KEEP yes: $TPU_NAME stays and costs money. When done: $0 delete"
  elif [[ $DELETE_AT_EXIT == yes ]]; then
    # In a shell of its own: a failure in it must not end this one.
    if ! (delete_resource); then
      ((code != 0)) || code=1
    fi
  fi
  rm -rf "$WORK"
  exit "$code"
}
