#!/usr/bin/env bash
# One job on one machine: restores RUN_DIR, checks the devices, runs COMMAND, and
# copies RUN_DIR to the bucket all the while. Started by start.sh.
# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

# The lock is inherited by COMMAND, so that it is held as long as anything of the
# job is left: two processes cannot share a TPU.
exec 9<>"$base/lock"
# Not --nonblock: to look whether the lock is free is to hold it for a moment.
flock --timeout 10 9 || exit 0
printf '%s\n' "$RUN_ID" >"$base/lock"
echo $$ >"$job/pid"

CODE_NOT_STARTED=72  # the devices or the environment are not what was asked for
CODE_NOT_RESTORED=73 # there is a copy of RUN_DIR that could not be read

# A failure of this script must not look like a machine that died, which would be
# tried again.
not_started() {
  gcloud storage cp --quiet "$job/log" "$bucket/log/worker-${worker:-0}" || true
  echo "$CODE_NOT_STARTED" >"$job/exit_code"
}
trap '(($? == 0)) || not_started' EXIT

worker=$(worker_number)
python=$(venv_directory)/bin/python
PATH=$(dirname "$python"):$PATH
export PATH DATA_DIR KERAS_BACKEND=$BACKEND WORKER=$worker
if [[ $BACKEND == jax ]]; then
  # Without it JAX would train on the CPU where it finds no TPU.
  export JAX_PLATFORMS=$PLATFORM
elif [[ $PLATFORM == tpu ]]; then
  export TPU_NAME=local PJRT_DEVICE=TPU NEXT_PLUGGABLE_DEVICE_USE_C_API=true
  TF_PLUGGABLE_DEVICE_LIBRARY_PATH=$("$python" -c \
    'import libtpu; print(libtpu.get_library_path())')
  export TF_PLUGGABLE_DEVICE_LIBRARY_PATH
fi

snapshot() {
  python3 "$checkout/tpu_scripts/vm/snapshot.py" "$1" "$RUN_DIR" "$bucket/snapshot"
}

upload() {
  gcloud storage cp --quiet "$1" "$2" 9>&-
}

# What was run, on what and with what, beside the results.
record() {
  local directory=$job/record
  mkdir -p "$directory"
  printf '%s\n' "$COMMAND" >"$directory/command"
  cp "$checkout/COMMIT" "$directory/commit"
  printf '%s\n' "$ACCELERATOR" >"$directory/accelerator"
  env | grep -E '^(JAX|KERAS|LIBTPU|PJRT|TF|TPU|XLA|RUN|DATA|NEXT)[A-Z_]*=' |
    sort >"$directory/environment"
  uv pip freeze --quiet --python "$python" >"$directory/requirements"
  "$python" "$checkout/tpu_scripts/vm/devices.py" "$PLATFORM" >"$directory/devices" ||
    { cat "$directory/devices" && return 1; }
  cat "$directory/devices"
  gcloud storage cp --quiet --recursive "$directory" "$bucket/record/worker-$worker/" 9>&-
}

keep_uploading() {
  while sleep "$UPLOAD_SECONDS"; do
    ((worker > 0)) || snapshot save ||
      echo "tpu job: the copy to the bucket failed; tried again"
    upload "$job/log" "$bucket/log/worker-$worker" || true
  done
}

# The last copy has no second chance: the disk goes with the machine. It is tried
# until it works, or until the watchdog ends it. Nothing was restored, nothing is
# saved.
save_results() {
  until { ((worker > 0 || code == CODE_NOT_RESTORED)) || snapshot save; } &&
    upload "$job/log" "$bucket/log/worker-$worker"; do
    echo "tpu job: the last copy to the bucket failed; tried again"
    sleep "$UPLOAD_SECONDS"
  done
}

# Of several workers one that failed decides, else the first.
leave_exit_code() {
  if ((code == 0)); then
    ((worker == 0)) || return 0
    ! gcloud storage ls "$bucket/exit_code" >/dev/null 2>&1 || return 0
  fi
  upload "$job/exit_code.new" "$bucket/exit_code"
}

stop() {
  interrupted=yes
  [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true
}

interrupted=no child=''
trap stop TERM
echo "tpu job: $RUN_ID on worker $worker, $(date -u +%Y-%m-%dT%H:%M:%SZ)"
mkdir -p "$RUN_DIR"
code=0
if ! snapshot restore; then
  code=$CODE_NOT_RESTORED
elif ! record; then
  code=$CODE_NOT_STARTED
else
  cd "$checkout"
  bash -c "$COMMAND" &
  child=$!
  keep_uploading 9>&- &
  uploader=$!
  wait "$child" || code=$?
  # A signal ends the wait, not the command.
  while [[ $interrupted == yes ]] && kill -0 "$child" 2>/dev/null; do
    wait "$child" || true
  done
  kill "$uploader" 2>/dev/null || true
fi

# A machine that is taken away says TERM to all, in any order. A command that
# saves and exits with 0 on TERM has not finished, so no exit code is left.
sleep "${GRACE_SECONDS:-2}" &
wait $! || true
((code != 143)) || interrupted=yes
if [[ $interrupted == yes ]]; then
  echo "tpu job: interrupted"
  snapshot save || true
  exit 0
fi
echo "tpu job: exit code $code"
save_results
printf '%s\n' "$code" >"$job/exit_code.new"
leave_exit_code || true
mv "$job/exit_code.new" "$job/exit_code"
