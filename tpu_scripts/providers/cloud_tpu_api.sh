# shellcheck shell=bash
# shellcheck disable=SC2034,SC2153  # variables are shared with lib/
# The Cloud TPU API: queued resources, for v2 to v6e. In maintenance mode, and
# the only one that has v2 to v5e. The functions are those of compute_engine.sh.

PROVIDER_SERVICES=(tpu.googleapis.com)
PROVIDER_DELETE_ROLE=roles/tpu.admin

# Checks ACCELERATOR and sets RUNTIME and HOSTS (0: more than one, as many as
# the slice has).
provider_check() {
  local chip=${ACCELERATOR%%-*} size=${ACCELERATOR#*-} sizes single base
  case $chip in
    v2) sizes='8 32 128 256 512' single=8 base=tpu-ubuntu2204-base ;;
    v3) sizes='8 32 64 128 256 512 1024 2048' single=8 base=tpu-ubuntu2204-base ;;
    v4) sizes='8 16 32 64 128 256 512 1024 2048 4096' single=8 base=tpu-ubuntu2204-base ;;
    v5litepod) sizes='1 4 8 16 32 64 128 256' single=8 base=v2-alpha-tpuv5-lite ;;
    v5p) sizes='8 16 32 64 128 256 512 1024 2048 4096' single=8 base=v2-alpha-tpuv5 ;;
    v6e) sizes='1 4 8 16 32 64 128 256' single=8 base=v2-alpha-tpuv6e ;;
    *) misuse "ACCELERATOR must be v2-N, v3-N, v4-N, v5litepod-N, v5p-N or v6e-N" \
      "with PROVIDER cloud_tpu_api (compute_engine takes v6e:2x2, tpu7x:2x2x1)." \
      "Received: '$ACCELERATOR'" ;;
  esac
  [[ " $sizes " == *" $size "* ]] ||
    misuse "ACCELERATOR must be $chip-N with N one of $sizes. Received: '$ACCELERATOR'"
  HOSTS=1
  ((size <= single)) || HOSTS=0
  [[ $BACKEND == jax ]] || base=tpu-vm-tf-2.19.0-pjrt
  RUNTIME=${RUNTIME:-$base}
}


# The line that deletes the resource, here and by the watchdog on the machine.
provider_delete_line() {
  DELETE_LINE=(gcloud compute tpus queued-resources delete "$QR_ID"
    --project="$PROJECT" --zone="$ZONE" --force --quiet)
}

provider_create() {
  local options=()
  provider_delete_line
  [[ $SPOT == no ]] || options+=(--spot)
  [[ -z $SERVICE_ACCOUNT ]] || options+=(--service-account="$SERVICE_ACCOUNT")
  [[ -z $NETWORK ]] || options+=(--network="$NETWORK")
  [[ -z $SUBNETWORK ]] || options+=(--subnetwork="$SUBNETWORK")
  act gcloud compute tpus queued-resources create "$QR_ID" \
    --node-id="$TPU_NAME" --project="$PROJECT" --zone="$ZONE" \
    --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" \
    --valid-until-duration="${QUEUE_HOURS}h" --labels="$(resource_labels)" \
    --scopes="$SCOPES" \
    --metadata="max-hours=$MAX_HOURS,delete-command=${DELETE_LINE[*]}" \
    --metadata-from-file=startup-script="$HERE/vm/watchdog.sh" \
    ${options[@]+"${options[@]}"} --quiet
}

# Looks at the resource. Sets STATE (ABSENT WAITING ACTIVE PREEMPTED FAILED
# DELETING UNKNOWN), OURS, RESOURCE_RUN_ID, DELETE_AFTER, REASON and WORKERS.
provider_look() {
  local found=0 labels='tpu.nodeSpec[0].node.labels' state managed_by owner
  ask gcloud compute tpus queued-resources describe "$QR_ID" \
    --project="$PROJECT" --zone="$ZONE" --quiet \
    --format="value[separator='|'](state.state,$labels.managed_by,$labels.owner,$labels.run_id,$labels.delete_after,state.failedData.error.message)" ||
    found=$?
  case $found in
    1) STATE=ABSENT ;;
    2) STATE=UNKNOWN ;;
  esac
  ((found == 0)) || return 0
  IFS='|' read -r state managed_by owner RESOURCE_RUN_ID DELETE_AFTER REASON \
    <<<"$ANSWER"
  [[ $managed_by != "$MANAGED_BY" || $owner != "$OWNER" ]] || OURS=yes
  case $state in
    CREATING | ACCEPTED | WAITING_FOR_RESOURCES | PROVISIONING) STATE=WAITING ;;
    ACTIVE) look_at_node ;;
    SUSPENDING | SUSPENDED) STATE=PREEMPTED ;;
    FAILED) STATE=FAILED ;;
    DELETING) STATE=DELETING ;;
  esac
  REASON=${REASON:-queued resource $state}
}

# An ACTIVE queued resource can have a node that was taken away.
look_at_node() {
  local found=0 state
  ask gcloud compute tpus tpu-vm describe "$TPU_NAME" \
    --project="$PROJECT" --zone="$ZONE" --quiet \
    --format="value[separator='|'](state,networkEndpoints.len())" || found=$?
  case $found in
    1) STATE=FAILED REASON="queued resource ACTIVE, but its node is gone" ;;
    2) STATE=UNKNOWN ;;
  esac
  ((found == 0)) || return 0
  IFS='|' read -r state WORKERS <<<"$ANSWER"
  REASON="node $state"
  case $state in
    READY) STATE=ACTIVE ;;
    PREEMPTED | TERMINATED | STOPPING | STOPPED) STATE=PREEMPTED ;;
    DELETING) STATE=DELETING ;;
    *) STATE=WAITING ;;
  esac
}

provider_delete() {
  provider_delete_line
  act "${DELETE_LINE[@]}"
}

# Removes what the machine leaves: nothing.
provider_clean() {
  :
}

# Runs a command on worker $1, a number or all.
provider_ssh() {
  act gcloud compute tpus tpu-vm ssh "$TPU_NAME" \
    --project="$PROJECT" --zone="$ZONE" --worker="$1" --command="$2" --quiet
}

# Sets ANSWER to lines of resource|node|state|managed_by|owner|delete_after.
provider_list() {
  local labels='tpu.nodeSpec[0].node.labels'
  ask gcloud compute tpus queued-resources list \
    --project="$PROJECT" --zone="$ZONE" --quiet \
    --format="value[separator='|'](name.basename(),tpu.nodeSpec[0].nodeId,state.state,$labels.managed_by,$labels.owner,$labels.delete_after)"
}

# Makes a line of provider_list the resource that the functions above are about.
provider_select() {
  QR_ID=$1 TPU_NAME=$2
}

# Lines of doctor: what must exist besides the project.
provider_doctor() {
  check "accelerator type $ACCELERATOR in $ZONE" \
    "choose another ZONE: gcloud compute tpus locations list --project=$PROJECT" \
    gcloud compute tpus tpu-vm accelerator-types describe "$ACCELERATOR" \
    --project="$PROJECT" --zone="$ZONE" --quiet
  check "software version $RUNTIME in $ZONE" \
    "set RUNTIME: gcloud compute tpus tpu-vm versions list --project=$PROJECT --zone=$ZONE" \
    gcloud compute tpus tpu-vm versions describe "$RUNTIME" \
    --project="$PROJECT" --zone="$ZONE" --quiet
}
