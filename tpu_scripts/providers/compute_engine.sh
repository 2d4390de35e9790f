# shellcheck shell=bash
# shellcheck disable=SC2034,SC2153  # variables are shared with lib/
# Compute Engine: v5p, v6e and TPU7x. A slice of one host is an instance; one of
# several is a managed instance group, with a template and a workload policy of
# the same name. There is no queue: a request is met or refused at once.
# The functions are those of cloud_tpu_api.sh.

PROVIDER_SERVICES=()
PROVIDER_DELETE_ROLE=roles/compute.instanceAdmin.v1

# Checks ACCELERATOR and sets RUNTIME, MACHINE, HOSTS and REGION.
provider_check() {
  local chip=${ACCELERATOR%%:*} topology=${ACCELERATOR#*:} topologies chips family
  local cubes='2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16'
  family=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e
  case $chip in
    v5p) topologies=$cubes MACHINE=ct5p-hightpu-4t ;;
    v6e) topologies='1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16' MACHINE=ct6e-standard-4t ;;
    tpu7x)
      topologies=$cubes MACHINE=tpu7x-standard-4t
      family=ubuntu-accel-2404-amd64-tpu-tpu7x
      ;;
    *) misuse "ACCELERATOR must be v5p:TOPOLOGY, v6e:TOPOLOGY or tpu7x:TOPOLOGY with" \
      "PROVIDER compute_engine (cloud_tpu_api takes v5litepod-8 and the like)." \
      "Received: '$ACCELERATOR'" ;;
  esac
  [[ " $topologies " == *" $topology "* ]] ||
    misuse "ACCELERATOR must be $chip:TOPOLOGY with TOPOLOGY one of $topologies." \
      "Received: '$ACCELERATOR'"
  [[ $BACKEND == jax || $chip != tpu7x ]] ||
    misuse "BACKEND must be jax on TPU7x. Received: '$BACKEND'"
  chips=$((${topology//x/*}))
  HOSTS=$(((chips + 3) / 4))
  case $ACCELERATOR in
    v6e:1x1) MACHINE=ct6e-standard-1t ;;
    v6e:2x4) MACHINE=ct6e-standard-8t HOSTS=1 ;;
  esac
  REGION=${ZONE%-*}
  RUNTIME=${RUNTIME:-$family}
}

provider_delete_line() {
  DELETE_LINE=(gcloud compute instances delete "$TPU_NAME"
    --project="$PROJECT" --zone="$ZONE" --quiet)
  ((HOSTS == 1)) ||
    DELETE_LINE=(gcloud compute instance-groups managed delete "$TPU_NAME"
      --project="$PROJECT" --zone="$ZONE" --quiet)
}

# What an instance and a template of instances are made with. STOP, not DELETE:
# a machine that was taken away must be told from one that somebody deleted.
# --max-run-duration stops it when the watchdog could not delete it.
machine_options() {
  provider_delete_line
  OPTIONS=(
    --machine-type="$MACHINE" --maintenance-policy=TERMINATE
    --image-family="$RUNTIME" --image-project=ubuntu-os-accelerator-images
    --boot-disk-size=200GB --scopes="$SCOPES"
    --max-run-duration="$((MAX_HOURS + 1))h" --instance-termination-action=STOP
    --metadata="max-hours=$MAX_HOURS,delete-command=${DELETE_LINE[*]}"
    --metadata-from-file=startup-script="$HERE/vm/watchdog.sh"
  )
  if [[ $SPOT == yes ]]; then
    OPTIONS+=(--provisioning-model=SPOT)
  else
    OPTIONS+=(--provisioning-model=STANDARD)
  fi
  [[ -z $SERVICE_ACCOUNT ]] || OPTIONS+=(--service-account="$SERVICE_ACCOUNT")
  [[ -z $NETWORK ]] || OPTIONS+=(--network="$NETWORK")
  [[ -z $SUBNETWORK ]] || OPTIONS+=(--subnet="$SUBNETWORK")
}

provider_create() {
  local labels
  labels=$(resource_labels)
  machine_options
  if ((HOSTS == 1)); then
    act gcloud compute instances create "$TPU_NAME" \
      --project="$PROJECT" --zone="$ZONE" "${OPTIONS[@]}" --labels="$labels" --quiet
    return
  fi
  provider_clean || return
  act gcloud compute resource-policies create workload-policy "$TPU_NAME" \
    --project="$PROJECT" --region="$REGION" --description="$labels" \
    --type=HIGH_THROUGHPUT --accelerator-topology="${ACCELERATOR#*:}" \
    --accelerator-topology-mode=AUTO_CONNECT --quiet || return
  act gcloud compute instance-templates create "$TPU_NAME" \
    --project="$PROJECT" --instance-template-region="$REGION" \
    --description="$labels" "${OPTIONS[@]}" \
    --labels="$labels,slice=$TPU_NAME" --quiet || return
  act gcloud compute instance-groups managed create "$TPU_NAME" \
    --project="$PROJECT" --zone="$ZONE" --description="$labels" --size="$HOSTS" \
    --template="projects/$PROJECT/regions/$REGION/instanceTemplates/$TPU_NAME" \
    --workload-policy="projects/$PROJECT/regions/$REGION/resourcePolicies/$TPU_NAME" \
    --target-size-policy-mode=bulk --default-action-on-vm-failure=do-nothing --quiet
}

provider_look() {
  if ((HOSTS == 1)); then
    look_at_instance
  else
    look_at_group
  fi
}

look_at_instance() {
  local found=0 state managed_by owner
  ask gcloud compute instances describe "$TPU_NAME" \
    --project="$PROJECT" --zone="$ZONE" --quiet \
    --format="value[separator='|'](status,labels.managed_by,labels.owner,labels.run_id,labels.delete_after)" ||
    found=$?
  answer_or_state "$found" || return 0
  IFS='|' read -r state managed_by owner RESOURCE_RUN_ID DELETE_AFTER <<<"$ANSWER"
  [[ $managed_by != "$MANAGED_BY" || $owner != "$OWNER" ]] || OURS=yes
  WORKERS=1 REASON="instance $state"
  case $state in
    RUNNING) STATE=ACTIVE ;;
    STOPPING | STOPPED | TERMINATED | SUSPENDING | SUSPENDED) STATE=PREEMPTED ;;
    *) STATE=WAITING ;;
  esac
}

# The group's labels stand in its description: a group has none of its own.
look_at_group() {
  local found=0 description state
  ask gcloud compute instance-groups managed describe "$TPU_NAME" \
    --project="$PROJECT" --zone="$ZONE" --quiet --format='value(description)' ||
    found=$?
  answer_or_state "$found" || return 0
  description=$ANSWER
  ! is_ours "$description" || OURS=yes
  RESOURCE_RUN_ID=$(label_of run_id "$description")
  DELETE_AFTER=$(label_of delete_after "$description")
  list_instances || found=$?
  answer_or_state "$found" || return 0
  WORKERS=$HOSTS STATE=WAITING
  state=$(awk -F'|' 'NF { print $2 }' <<<"$ANSWER" | sort | uniq -c | xargs)
  REASON="instances: ${state:-none yet}"
  if grep -qE '\|(STOPPING|STOPPED|TERMINATED|SUSPENDING|SUSPENDED)$' <<<"$ANSWER"; then
    STATE=PREEMPTED
  elif (($(grep -c '|RUNNING$' <<<"$ANSWER") == HOSTS)); then
    STATE=ACTIVE
  fi
}

# Sets STATE where there is no answer to read.
answer_or_state() {
  case $1 in
    1) STATE=ABSENT ;;
    2) STATE=UNKNOWN ;;
  esac
  (($1 == 0))
}

list_instances() {
  ask gcloud compute instance-groups managed list-instances "$TPU_NAME" \
    --project="$PROJECT" --zone="$ZONE" --quiet --sort-by=instance \
    --format="value[separator='|'](instance.basename(),instanceStatus)"
}

label_of() {
  [[ ",$2," =~ ,$1=([^,]*), ]] && printf '%s' "${BASH_REMATCH[1]}"
  return 0
}

is_ours() {
  [[ $(label_of managed_by "$1") == "$MANAGED_BY" && $(label_of owner "$1") == "$OWNER" ]]
}

provider_delete() {
  provider_delete_line
  act "${DELETE_LINE[@]}"
}

# Removes the template and the policy of a group that is gone. They cost nothing,
# and the watchdog leaves them.
provider_clean() {
  ((HOSTS == 1)) ||
    { delete_leftover instance-templates && delete_leftover resource-policies; }
}

delete_leftover() {
  local found=0
  ask gcloud compute "$1" describe "$TPU_NAME" --project="$PROJECT" \
    --region="$REGION" --quiet --format='value(description)' || found=$?
  case $found in
    1) return 0 ;;
    2) return 1 ;;
  esac
  if [[ $DRY_RUN == no ]] && ! is_ours "$ANSWER"; then
    say "$1 $TPU_NAME exists and is not ours (owner $OWNER): left alone."
    return 1
  fi
  act gcloud compute "$1" delete "$TPU_NAME" --project="$PROJECT" \
    --region="$REGION" --quiet
}

# Runs a command on worker $1, a number or all; on all at the same time, for the
# devices of a slice start together.
provider_ssh() {
  local names=("$TPU_NAME") name number=0 status=0
  if ((HOSTS > 1)); then
    if [[ $DRY_RUN == yes ]]; then
      list_instances
      names=("$TPU_NAME-0000")
      say "the line below once for each instance listed above:"
    else
      list_instances || return
      names=()
      while IFS='|' read -r name _; do
        [[ -z $name ]] || names+=("$name")
      done <<<"$ANSWER"
    fi
    [[ $1 == all ]] || names=("${names[$1]}")
  fi
  if ((${#names[@]} == 1)); then
    ssh_to "${names[0]}" "$2"
    return
  fi
  for name in "${names[@]}"; do
    ssh_to "$name" "$2" >"$WORK/ssh.$number" &
    number=$((number + 1))
  done
  for name in $(jobs -p); do
    wait "$name" || status=$?
  done
  cat "$WORK"/ssh.*
  rm -f "$WORK"/ssh.*
  return "$status"
}

ssh_to() {
  act gcloud compute ssh "$1" --project="$PROJECT" --zone="$ZONE" \
    --command="$2" --quiet
}

# Groups, and the instances that are in none.
provider_list() {
  local groups='' line name description
  ask gcloud compute instance-groups managed list --project="$PROJECT" \
    --zones="$ZONE" --quiet --format="value[separator='|'](name,description)" || return
  while IFS='|' read -r name description; do
    [[ -z $name ]] || groups+="$name|group|?|$(label_of managed_by "$description")|$(
      label_of owner "$description"
    )|$(label_of delete_after "$description")"$'\n'
  done <<<"$ANSWER"
  ask gcloud compute instances list --project="$PROJECT" --zones="$ZONE" --quiet \
    --format="value[separator='|'](name,labels.slice,status,labels.managed_by,labels.owner,labels.delete_after)" || return
  while IFS= read -r line; do
    [[ ! $line =~ ^[^|]+\|\| ]] || groups+="${line/||/|instance|}"$'\n'
  done <<<"$ANSWER"
  ANSWER=$groups
}

provider_select() {
  TPU_NAME=$1 HOSTS=1
  [[ $2 == instance ]] || HOSTS=2
}

provider_doctor() {
  check "machine type $MACHINE in $ZONE" \
    "choose another ZONE: gcloud compute machine-types list --project=$PROJECT --filter=name=$MACHINE" \
    gcloud compute machine-types describe "$MACHINE" \
    --project="$PROJECT" --zone="$ZONE" --quiet
  check "image family $RUNTIME" \
    "set RUNTIME: gcloud compute images list --project=ubuntu-os-accelerator-images --filter=family~tpu" \
    gcloud compute images describe-from-family "$RUNTIME" \
    --project=ubuntu-os-accelerator-images --quiet
}
