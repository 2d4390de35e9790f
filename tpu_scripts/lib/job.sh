# shellcheck shell=bash
# shellcheck disable=SC2034,SC2153  # the files of lib/ share their variables
# A job on the machines: code, environment, start, poll. The machines answer in
# lines "tpu_job: worker N WORD ..." (vm/common.sh).

# Runs a script of vm/, see vm_line, on all workers and sets REPLIES to their
# answers. Returns 1 unless every worker has answered: gcloud's exit status does
# not tell which of several failed.
tell() {
  tell_line "$(vm_line "$@")"
}

tell_line() {
  local count
  provider_ssh all "$1" | tee "$WORK/replies" >&3 || true
  [[ $DRY_RUN == no ]] || return 0
  # gcloud may put something before a line, and run a command again.
  REPLIES=$(sed -n 's/.*tpu_job: worker //p' "$WORK/replies" | sort -u)
  count=$(cut -d ' ' -f 1 <<<"$REPLIES" | sort -u | grep -c . || true)
  ((count >= WORKERS))
}

# A command line for a machine that runs a script of vm/, with the settings of
# these names besides those that all need.
vm_line() {
  local script=$1 name words=()
  shift
  for name in RUN_ID BUCKET BACKEND "$@"; do
    words+=("$name=${!name}")
  done
  printf 'env %s bash tpu_job/source/tpu_scripts/vm/%s' \
    "$(shell_quote "${words[@]}")" "$script"
}

bucket() {
  printf 'gs://%s/%s' "$BUCKET" "$RUN_ID"
}

# Puts the repository at COMMIT into the bucket, once for each commit.
upload_source() {
  local archive=$LOCAL/$COMMIT.tar.gz url found=0
  url=$(bucket)/source/$COMMIT.tar.gz
  ask_surely gcloud storage ls "$url" || found=$?
  [[ $found == 1 || $DRY_RUN == yes ]] || return 0
  if ! { act mkdir -p "$LOCAL" && act git -C "$ROOT" archive --format=tar.gz \
    --output="$archive" "$COMMIT" && act gcloud storage cp "$archive" "$url" --quiet; }; then
    fail "commit $COMMIT could not be put into the bucket; see above."
  fi
}

# The number of a machine, found there before there is vm/common.sh to ask.
# shellcheck disable=SC2016
WORKER_NUMBER='$(curl -sf -m 10 -H Metadata-Flavor:Google http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number || echo 0)'

# What a machine does to have the repository at COMMIT. Not while a job runs in
# it, and a folder is only renamed when it is whole.
source_line() {
  local url
  url=$(bucket)/source/$COMMIT.tar.gz
  cat <<LINE
set -e; PATH=\$PATH:/snap/bin; mkdir -p tpu_job; cd tpu_job; touch lock
me="tpu_job: worker $WORKER_NUMBER"
if ! flock --timeout 5 lock true; then echo "\$me BUSY \$(cat lock)"; exit 0; fi
if [ "\$(cat source/COMMIT 2>/dev/null)" != $COMMIT ]; then
rm -rf new; mkdir new
gcloud storage cp $(shell_quote "$url") source.tar.gz --quiet
tar -xzf source.tar.gz -C new
echo $COMMIT >new/COMMIT
rm -rf source; mv new source; rm source.tar.gz
fi
echo "\$me READY"
LINE
}

sync_source() {
  say "sending commit $COMMIT"
  upload_source
  tell_line "$(source_line)"
}

setup_workers() {
  say "making the Python environment for $BACKEND (some minutes the first time)"
  tell setup.sh
}

# Sets JOB to what the workers say together, and JOB_CODE. One that was lost
# decides, for then the others fail too; else one that failed; and a job that
# does not run everywhere does not run.
ask_job() {
  local word
  JOB=EXITED JOB_CODE=0
  if [[ $DRY_RUN == yes ]]; then
    tell status.sh
    REPLIES=''
    JOB=$EXPECTED_JOB
    return 0
  fi
  # Without the repository no job was ever started.
  tell_line "if [ -e tpu_job/source/COMMIT ]; then $(vm_line status.sh); else echo \"tpu_job: worker $WORKER_NUMBER NONE\"; fi" \
    3>/dev/null 2>"$WORK/ssh_errors" || return 1
  if ! grep -q '^[^ ]* LOST' <<<"$REPLIES"; then
    JOB_CODE=$(sed -n 's/^[^ ]* EXITED //p' <<<"$REPLIES" | grep -vx 0 | head -n 1 || true)
    if [[ -n $JOB_CODE ]]; then return 0; fi
  fi
  JOB_CODE=0
  for word in RUNNING NONE LOST BUSY; do
    if grep -q "^[^ ]* $word" <<<"$REPLIES"; then JOB=$word; fi
  done
}

# What ask_job was last told by ssh when it got no answer.
ssh_error() {
  local line
  line=$(tail -n 1 "$WORK/ssh_errors" 2>/dev/null || true)
  [[ -z $line ]] || printf ': %s' "$line"
}

refuse_busy() {
  [[ $REPLIES == *' BUSY'* ]] || return 0
  DELETE_AT_EXIT=no
  fail "a job runs on $TPU_NAME: $(sed -n 's/^[^ ]* BUSY //p' <<<"$REPLIES" | head -n 1)." \
    "Wait for it, or delete the machine."
}

# Starts the job unless it runs. Returns 1 if the connection was lost on the way.
start_job() {
  local step
  for step in sync_source setup_workers start_workers; do
    connected "$step" || return 1
    refuse_busy
    [[ $REPLIES != *' FAILED'* ]] || fail "${step/_/ } failed on a worker; see above."
  done
  EXPECTED_JOB=EXITED
}

start_workers() {
  say "starting the job"
  tell start.sh ACCELERATOR PLATFORM UPLOAD_SECONDS DATA_DIR COMMAND
}

# Runs a step again while the machine is there but does not answer: ssh keys take
# a while to arrive on a new one.
connected() {
  local deadline=$((SECONDS + LOST_MINUTES * 60))
  until "$@"; do
    look
    [[ $STATE == ACTIVE || $STATE == UNKNOWN ]] || return 1
    ((SECONDS < deadline)) ||
      fail "$TPU_NAME did not answer for LOST_MINUTES $LOST_MINUTES."
    say "$TPU_NAME does not answer; trying again$(ssh_error)"
    pause "$POLL_SECONDS"
  done
}

# Polls until something has become of the job. Sets JOB: EXITED with JOB_CODE,
# LOST (it died without a code), PREEMPTED or GONE (the machine did).
follow_job() {
  local deadline=''
  say "the job runs. Its log: $0 logs"
  while :; do
    if ask_job; then
      deadline=''
      [[ $JOB == RUNNING ]] || return 0
    else
      look
      case $STATE in
        PREEMPTED | FAILED) JOB=PREEMPTED && return 0 ;;
        ABSENT | DELETING) JOB=GONE && return 0 ;;
      esac
      deadline=${deadline:-$((SECONDS + LOST_MINUTES * 60))}
      ((SECONDS < deadline)) ||
        fail "$TPU_NAME did not answer for LOST_MINUTES $LOST_MINUTES."
      say "no answer from $TPU_NAME ($REASON); the job goes on without us$(ssh_error)"
    fi
    pause "$POLL_SECONDS"
  done
}

# The exit code that the job has left in the bucket: empty if none.
exit_code_in_bucket() {
  ask_surely gcloud storage cat "$(bucket)/exit_code" || ANSWER=''
  ANSWER=${ANSWER//[!0-9]/}
}

# Makes sure that the job runs, or has ended with code 0.
join_job() {
  ask_job || return
  refuse_busy
  case "$JOB $JOB_CODE" in
    'RUNNING 0') say "it was started before" ;;
    'EXITED 0') ;;
    *) start_job && JOB=RUNNING ;;
  esac
}

# Runs the job to its end through preemptions, and returns its exit code.
carry_out() {
  local retries=0 since
  while :; do
    JOB=PREEMPTED since=''
    if obtain_resource; then
      since=$SECONDS
      if connected join_job; then
        [[ $JOB == EXITED ]] || follow_job
      elif [[ $STATE == ABSENT || $STATE == DELETING ]]; then
        JOB=GONE
      else
        JOB=PREEMPTED
      fi
    fi
    if [[ $JOB == EXITED ]]; then
      return "$JOB_CODE"
    fi
    # The workers of a slice only start together, and what the others say of a
    # lost one is not the end of the run.
    if [[ $JOB == LOST ]] && ((WORKERS > 1)); then
      delete_resource
      exit_code_in_bucket
      [[ -z $ANSWER ]] || act gcloud storage rm "$(bucket)/exit_code" --quiet ||
        fail "the exit code of a worker could not be removed; see above."
    fi
    # Taken away, or deleted by its own watchdog just after it was done?
    exit_code_in_bucket
    [[ -z $ANSWER ]] || return "$ANSWER"
    if [[ $JOB == GONE ]] ||
      { [[ -n $since ]] && ((SECONDS - since >= MAX_HOURS * 3600)); }; then
      fail "$TPU_NAME was deleted: by its watchdog after MAX_HOURS $MAX_HOURS, or by" \
        "somebody. To go on from the last copy in the bucket: $0 resume"
    fi
    ((retries < MAX_RETRIES)) ||
      fail "$TPU_NAME was taken away and MAX_RETRIES $MAX_RETRIES are used up." \
        "To go on from the last copy in the bucket: $0 resume"
    retries=$((retries + 1))
    say "$TPU_NAME: $JOB. Retry $retries of $MAX_RETRIES, same run, from its last copy."
  done
}
