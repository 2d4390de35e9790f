# shellcheck shell=bash
# shellcheck disable=SC2034,SC2153  # the files of lib/ share their variables
# Settings: a file, over it the environment, over it the flags; then checked.

SETTINGS=(
  PROJECT ZONE BUCKET TPU_NAME ACCELERATOR PROVIDER QR_ID RUNTIME
  SPOT MAX_HOURS MAX_RETRIES QUEUE_HOURS
  RUN_ID BACKEND COMMIT COMMAND DATA_DIR LOCAL_DATA_DIR
  OWNER LABELS SERVICE_ACCOUNT NETWORK SUBNETWORK KEEP
  POLL_SECONDS UPLOAD_SECONDS WAIT_MINUTES LOST_MINUTES PLATFORM WORKER
)

is_setting() {
  local name
  for name in "${SETTINGS[@]}"; do
    [[ $name != "$1" ]] || return 0
  done
  return 1
}

# Reads KEY=value lines of a file into the settings that have no value yet.
read_settings() {
  local file=$1 line name value number=0
  [[ -r $file ]] || misuse "--config must be a readable file. Received: $file"
  while IFS= read -r line || [[ -n $line ]]; do
    number=$((number + 1))
    [[ $line =~ ^[[:space:]]*(#.*)?$ ]] && continue
    if [[ ! $line =~ ^([A-Z_]+)=(.*)$ ]]; then
      misuse "$file, line $number must be KEY=value. Received: $line"
    fi
    name=${BASH_REMATCH[1]} value=${BASH_REMATCH[2]}
    if [[ $value =~ ^\'(.*)\'$ || $value =~ ^\"(.*)\"$ ]]; then
      value=${BASH_REMATCH[1]}
    fi
    is_setting "$name" ||
      misuse "$file, line $number: there is no setting $name. See config.env."
    [[ -n ${!name+set} ]] || printf -v "$name" %s "$value"
  done <"$file"
}

# Puts a flag such as --max-hours 4 into MAX_HOURS. Sets SHIFT to the number of
# words it took.
read_flag() {
  local name=${1%%=*} value
  name=$(printf %s "${name#--}" | tr 'a-z-' 'A-Z_')
  SHIFT=1
  if ! is_setting "$name"; then
    misuse "there is no flag ${1%%=*}. tpu help lists them."
  fi
  if [[ $1 == *=* ]]; then
    value=${1#*=}
  elif [[ $name == SPOT || $name == KEEP ]]; then
    value=yes
  else
    [[ $# -ge 2 ]] || misuse "$1 must be followed by a value."
    value=$2 SHIFT=2
  fi
  FLAGS+=("$name=$value")
}

apply_flags() {
  local flag
  for flag in ${FLAGS[@]+"${FLAGS[@]}"}; do
    printf -v "${flag%%=*}" %s "${flag#*=}"
  done
}

default_settings() {
  local name login
  login=$(id -un | tr '[:upper:]' '[:lower:]' | tr -cs 'a-z0-9_\n-' '_')
  for name in "${SETTINGS[@]}"; do
    [[ -n ${!name+set} ]] || printf -v "$name" %s ''
  done
  : "${PROVIDER:=auto}" "${SPOT:=no}" "${MAX_HOURS:=8}" "${MAX_RETRIES:=5}"
  : "${QUEUE_HOURS:=24}" "${BACKEND:=jax}" "${COMMIT:=HEAD}" "${KEEP:=no}"
  : "${POLL_SECONDS:=30}" "${UPLOAD_SECONDS:=300}" "${LOST_MINUTES:=30}"
  : "${PLATFORM:=tpu}" "${WORKER:=0}" "${QR_ID:=$TPU_NAME}" "${OWNER:=$login}"
  : "${DATA_DIR:=gs://$BUCKET/tensorflow_datasets}"
  : "${LOCAL_DATA_DIR:=$HOME/tensorflow_datasets}"
  if [[ -z $WAIT_MINUTES && $QUEUE_HOURS =~ ^[0-9]+$ ]]; then
    WAIT_MINUTES=$((QUEUE_HOURS * 60 + 30))
  fi
  if [[ $PROVIDER == auto ]]; then
    PROVIDER=cloud_tpu_api
    [[ $ACCELERATOR != *:* ]] || PROVIDER=compute_engine
  fi
}

# must NAME PATTERN WHAT: the setting must match the pattern, whole.
must() {
  [[ ${!1} =~ ^($2)$ ]] || misuse "$1 must be $3. Received: '${!1}'"
}

check_settings() {
  local name
  local whole='0|[1-9][0-9]{0,5}' positive='[1-9][0-9]{0,5}'
  local label='[a-z][a-z0-9_-]{0,62}=[a-z0-9_-]{0,63}'
  local resource='[a-z]([a-z0-9-]{0,46}[a-z0-9])?'
  local resource_words='lower-case letters, digits and dashes, at most 48, a letter first'

  must PROJECT '([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]' \
    'the id of a Google Cloud project'
  must ZONE '[a-z]+-[a-z]+[0-9]+-[a-z][a-z0-9]*' 'a zone, such as us-west4-a'
  must BUCKET '[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]' \
    'the name of a bucket, without gs://'
  must TPU_NAME "$resource" "$resource_words"
  must QR_ID "$resource" "$resource_words"
  must RUN_ID '[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?' \
    'lower-case letters, digits, dashes and underscores, at most 63'
  must OWNER '[a-z0-9_-]{1,63}' 'lower-case letters, digits, - and _, at most 63'
  must LABELS "($label(,$label)*)?" 'key=value,key=value in lower case, or empty'
  if [[ ,$LABELS =~ ,(managed_by|owner|run_id|delete_after|slice)= ]]; then
    misuse "LABELS must not set ${BASH_REMATCH[1]}, which the scripts set. Received: '$LABELS'"
  fi
  must WORKER "$whole|all" 'the number of a worker, or all'
  for name in SPOT KEEP; do must "$name" 'yes|no' 'yes or no'; done
  for name in MAX_HOURS QUEUE_HOURS; do
    must "$name" "$positive" 'a whole number of hours, at least 1'
  done
  must MAX_RETRIES "$whole" 'a whole number, at least 0'
  for name in WAIT_MINUTES LOST_MINUTES; do
    must "$name" "$whole" 'a whole number of minutes'
  done
  for name in POLL_SECONDS UPLOAD_SECONDS; do
    must "$name" '[0-9]{1,5}(\.[0-9]{1,3})?' 'a number of seconds'
  done
  must BACKEND 'jax|tensorflow' 'jax or tensorflow'
  must PLATFORM 'tpu|cpu' 'tpu or cpu'
  [[ $COMMAND != *$'\n'* ]] ||
    misuse "COMMAND must be one line. Received: '$COMMAND'"
  must DATA_DIR '[^[:space:]]*' 'a folder or gs:// address without spaces'
  must SERVICE_ACCOUNT '([a-z0-9.-]+@[a-z0-9.-]+)?' 'an e-mail address, or empty'
  must NETWORK '[a-z0-9-]*' 'the name of a network, or empty'
  must SUBNETWORK '[a-z0-9-]*' 'the name of a subnetwork, or empty'
  must PROVIDER 'cloud_tpu_api|compute_engine' \
    'auto, cloud_tpu_api or compute_engine'
}

print_settings() {
  local name
  say "settings:"
  for name in "${SETTINGS[@]}"; do
    [[ -z ${!name} ]] || say "$(printf '  %-16s %s' "$name" "${!name}")"
  done
  say "  at most $(((MAX_RETRIES + 1) * MAX_HOURS)) machine hours:" \
    "MAX_HOURS $MAX_HOURS, and again after each of MAX_RETRIES $MAX_RETRIES preemptions"
}

# The labels of everything that is made, and those alone are ever deleted.
resource_labels() {
  local now
  now=$(date +%s)
  printf 'managed_by=%s,owner=%s,run_id=%s,delete_after=%s%s' \
    "$MANAGED_BY" "$OWNER" "$RUN_ID" \
    "$((now + (QUEUE_HOURS + MAX_HOURS) * 3600))" "${LABELS:+,$LABELS}"
}

MANAGED_BY=keras_adafactor
# The machine calls Google's interfaces as its service account; what it may do
# there is decided by the roles of that account.
SCOPES=https://www.googleapis.com/auth/cloud-platform
