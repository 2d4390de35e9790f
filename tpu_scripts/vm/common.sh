# shellcheck shell=bash
# shellcheck disable=SC2034,SC2153  # for the scripts that read this
# Where things are on a machine, and how it answers.
#
#   ~/tpu_job/source          the repository at COMMIT
#   ~/tpu_job/venv-*          Python, one for each list of requirements
#   ~/tpu_job/lock            held while a job runs; says which
#   ~/tpu_job/runs/RUN_ID     RUN_DIR of the job
#   ~/tpu_job/jobs/RUN_ID     its log, exit_code and record
set -euo pipefail

base=$HOME/tpu_job
checkout=$base/source
job=$base/jobs/$RUN_ID
bucket=gs://$BUCKET/$RUN_ID
export RUN_DIR=$base/runs/$RUN_ID
# Some images have gcloud as a snap.
export PATH=$HOME/.local/bin:$PATH:/snap/bin

# The number of this machine in its slice. JAX reads the same attribute.
worker_number() {
  local number
  number=$(curl --fail --silent --max-time 10 --header 'Metadata-Flavor: Google' \
    http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number) ||
    number=0
  printf '%s' "$number"
}

# The one line that the other side reads.
reply() {
  printf 'tpu_job: worker %s %s\n' "$(worker_number)" "$*"
}

# The environment of these requirements and this Python.
venv_directory() {
  local hash
  hash=$(cat "$checkout/tpu_scripts/requirements/$BACKEND.txt" \
    "$checkout/tpu_scripts/vm/setup.sh" | sha256sum)
  printf '%s' "$base/venv-$BACKEND-${hash:0:12}"
}

# Prints the RUN_ID of the job that runs here, if one does.
running_job() {
  [[ -e $base/lock ]] || return 0
  flock --nonblock "$base/lock" true || cat "$base/lock"
}
