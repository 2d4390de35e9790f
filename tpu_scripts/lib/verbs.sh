# shellcheck shell=bash
# shellcheck disable=SC2034,SC2153  # the files of lib/ share their variables
# One function for each verb.

verb_create() {
  EXPECTED=ABSENT
  look_surely
  if [[ $STATE != ABSENT ]]; then
    refuse_foreign
    say "$TPU_NAME already exists: $STATE ($REASON)."
    return 0
  fi
  create_resource
  say "next: $0 wait, then $0 run. Until then it can cost money: $0 delete"
}

verb_wait() {
  wait_until_active || fail "$TPU_NAME was taken away ($REASON). $0 resume asks for it again."
}

verb_sync() {
  resolve_commit
  require_active
  sync_source || fail "$TPU_NAME did not answer."
  refuse_busy
}

verb_setup() {
  require_active
  setup_workers || fail "$TPU_NAME did not answer."
  [[ $REPLIES != *' FAILED'* ]] || fail "setup failed on a worker; see above."
}

require_active() {
  look_surely
  [[ $STATE == ACTIVE ]] || fail "$TPU_NAME is $STATE${REASON:+ ($REASON)}, it must be ACTIVE."
  refuse_foreign
}

verb_run() {
  [[ -n $COMMAND ]] || misuse "COMMAND must be what to run. Received: ''"
  resolve_commit
  claim_run
  finish_run
}

# The same as run, with the command, commit and backend that the run was started
# with.
verb_resume() {
  ask_surely gcloud storage cat "$(bucket)/run.env" ||
    fail "there is no run $RUN_ID in gs://$BUCKET. Start it: $0 run"
  if [[ $DRY_RUN == yes ]]; then
    resolve_commit
  else
    printf '%s\n' "$ANSWER" >"$WORK/run.env"
    unset COMMIT COMMAND BACKEND DATA_DIR
    read_settings "$WORK/run.env"
    RUNTIME=$GIVEN_RUNTIME
    provider_check
    say "as it was started:"
    say "$ANSWER"
  fi
  finish_run
}

finish_run() {
  exit_code_in_bucket
  if [[ $ANSWER == 0 ]]; then
    say "the run $RUN_ID is already finished: $0 fetch"
    return 0
  fi
  [[ -z $ANSWER ]] || act gcloud storage rm "$(bucket)/exit_code" --quiet ||
    fail "the exit code of the last try could not be removed; see above."
  # What ends this from here on, ends the machine too, from obtain_resource on.
  EXPECTED=ABSENT EXPECTED_JOB=NONE
  local code=0
  carry_out || code=$?
  if ((code == 0)); then
    say "the run $RUN_ID is finished. Its results: $0 fetch"
  else
    say "the command of $RUN_ID ended with code $code; it is not tried again." \
      "Its log: $0 logs"
  fi
  case $code in
    72) say "(72: the devices or the environment are not what was asked for)" ;;
    73) say "(73: the copy of RUN_DIR in the bucket could not be read)" ;;
  esac
  return "$code"
}

resolve_commit() {
  local given=$COMMIT
  COMMIT=$(git -C "$ROOT" rev-parse --verify --quiet "$given^{commit}") ||
    misuse "COMMIT must be a commit of $ROOT. Received: '$given'"
  [[ -z $(git -C "$ROOT" status --porcelain --untracked-files=no) ]] ||
    say "note: changes that are not committed are not sent."
}

# A RUN_ID is one command on one commit, whoever asks again.
claim_run() {
  local found=0 name wanted=()
  for name in COMMIT BACKEND DATA_DIR COMMAND; do
    wanted+=("$name='${!name}'")
  done
  ask_surely gcloud storage cat "$(bucket)/run.env" || found=$?
  if [[ $found == 1 || $DRY_RUN == yes ]]; then
    if ! { act mkdir -p "$LOCAL" && act_write "$LOCAL/run.env" "${wanted[@]}" &&
      act gcloud storage cp "$LOCAL/run.env" "$(bucket)/run.env" --quiet; }; then
      fail "nothing could be written to the bucket $BUCKET; see above."
    fi
  elif [[ $ANSWER != "$(printf '%s\n' "${wanted[@]}")" ]]; then
    misuse "RUN_ID $RUN_ID was started with other settings. Continue it with" \
      "'$0 resume', or set another RUN_ID.
$(diff <(printf '%s\n' "$ANSWER") <(printf '%s\n' "${wanted[@]}") |
        sed -n 's/^< /  started with /p; s/^> /  received     /p')"
  fi
}

verb_status() {
  EXPECTED=ACTIVE
  look_surely
  say "machine   $TPU_NAME in $ZONE: $STATE${REASON:+ ($REASON)}"
  if [[ $STATE != ABSENT ]]; then
    [[ $OURS == yes ]] || say "          not ours: it lacks owner=$OWNER"
    [[ ! $DELETE_AFTER =~ ^[0-9]+$ ]] ||
      say "          sweep deletes it in $(((DELETE_AFTER - $(date +%s)) / 3600)) h, its watchdog MAX_HOURS after its start"
  fi
  if [[ $STATE == ACTIVE ]]; then
    if ask_job; then
      say "job       $RUN_ID: $JOB$([[ $JOB != EXITED ]] || echo " $JOB_CODE")"
    else
      say "job       $RUN_ID: no answer from the machine"
    fi
  fi
  exit_code_in_bucket
  say "bucket    $(bucket): $([[ -n $ANSWER ]] && echo "finished with code $ANSWER" || echo "not finished")"
  if ask_surely gcloud storage cat "$(bucket)/snapshot/LATEST" && [[ $DRY_RUN == no ]]; then
    say "          last copy of RUN_DIR $(($(date +%s) - ${ANSWER:0:10})) s ago"
  elif [[ $DRY_RUN == no ]]; then
    say "          no copy of RUN_DIR yet"
  fi
}

verb_logs() {
  local name line
  if [[ $WORKER == all ]]; then
    say "from the bucket: the logs as they were last copied"
    ask_surely gcloud storage ls "$(bucket)/log/" || fail "there is no log of $RUN_ID."
    for name in $ANSWER; do
      ask_surely gcloud storage cat "$name" || continue
      while IFS= read -r line; do
        printf '%s: %s\n' "${name##*/}" "$line"
      done <<<"$ANSWER"
    done
    return 0
  fi
  look_surely
  if [[ $STATE == ACTIVE ]] && provider_ssh "$WORKER" "$(vm_line logs.sh)"; then
    [[ $DRY_RUN == yes ]] || return 0
  fi
  say "from the bucket: the log as it was last copied"
  act gcloud storage cat "$(bucket)/log/worker-$WORKER" || fail "there is no log of $RUN_ID."
}

verb_fetch() {
  ask_surely gcloud storage cat "$(bucket)/run.env" ||
    fail "there is no run $RUN_ID in gs://$BUCKET."
  local target=$LOCAL
  act mkdir -p "$target" || return
  say "the files of the last copy, checked by their SHA-256:"
  # What was fetched before goes only when its successor is there.
  act rm -rf "$target/new" "$target/new.snapshot.json" || return
  act mkdir "$target/new" || return
  act python3 "$HERE/vm/snapshot.py" restore "$target/new" "$(bucket)/snapshot" || return
  act rm -rf "$target/run" "$target/new.snapshot.json" "$target/new.snapshot.lock" || return
  act mv "$target/new" "$target/run" || return
  act gcloud storage cp "$(bucket)/log" "$(bucket)/record" "$(bucket)/run.env" \
    "$target/" --recursive --quiet || return
  say "fetched into $target"
}

verb_delete() {
  delete_resource
}

# Deletes what is of no more use and carries our labels, each by its full name.
verb_sweep() {
  local rows name node state managed_by owner delete_after due swept=0
  provider_list || fail "the list could not be read; see above."
  if [[ $DRY_RUN == yes ]]; then
    say "for each of these that is FAILED, SUSPENDED or late, and ours:"
    delete_resource
    return
  fi
  rows=$ANSWER
  while IFS='|' read -r name node state managed_by owner delete_after; do
    [[ -n $name && $managed_by == "$MANAGED_BY" && $owner == "$OWNER" ]] || continue
    due=''
    case $state in FAILED | SUSPENDED | TERMINATED | STOPPED) due=$state ;; esac
    if [[ $delete_after =~ ^[0-9]+$ ]] && (($(date +%s) > delete_after)); then
      due="past QUEUE_HOURS + MAX_HOURS"
    fi
    if [[ -z $due ]]; then
      say "$name: $state, left alone"
      continue
    fi
    say "$name: $due"
    swept=$((swept + 1))
    (provider_select "$name" "$node" && delete_resource) || SWEEP_FAILED=yes
  done <<<"$rows"
  say "swept $swept in $ZONE (owner $OWNER)"
  [[ ${SWEEP_FAILED:-no} == no ]] || fail "not everything could be deleted; see above."
}

# Builds WMT14 once, here, and puts it into the bucket. dataset_info.json goes
# last: tfds takes a folder for a dataset when it has one.
verb_prepare_wmt14() {
  local url=$DATA_DIR/wmt14_translate/de-en/1.0.0 found=0
  local folder=$LOCAL_DATA_DIR/wmt14_translate/de-en/1.0.0
  ask_surely gcloud storage ls "$url/dataset_info.json" || found=$?
  if [[ $found == 0 && $DRY_RUN == no ]]; then
    say "WMT14 is already in $DATA_DIR"
    return 0
  fi
  act "${PYTHON:-python}" -m examples.translation prepare \
    --tfds_name wmt14_translate/de-en --data_dir "$LOCAL_DATA_DIR" || return
  act gcloud storage rsync "$folder" "$url" --recursive \
    --exclude='.*dataset_info\.json$' --quiet || return
  act gcloud storage cp "$folder/dataset_info.json" "$url/dataset_info.json" --quiet ||
    return
  say "WMT14 is in $DATA_DIR. In COMMAND: --data tfds --data_dir \"\$DATA_DIR\""
}

# check WHAT REMEDY COMMAND...: one line of doctor.
check() {
  local what=$1 remedy=$2
  shift 2
  if ask "$@" && [[ -n $ANSWER || $DRY_RUN == yes ]]; then
    say "ok      $what"
  else
    say "MISSING $what"
    say "        $remedy"
    DOCTOR_FAILED=yes
  fi
}

verb_doctor() {
  local service services=(compute.googleapis.com storage.googleapis.com)
  DOCTOR_FAILED=no
  check "an account is logged in" "gcloud auth login" \
    gcloud auth list --filter=status:ACTIVE --format='value(account)'
  check "project $PROJECT" "gcloud projects create $PROJECT" \
    gcloud projects describe "$PROJECT" --format='value(projectId)' --quiet
  check "billing is on" \
    "gcloud billing projects link $PROJECT --billing-account=ACCOUNT (gcloud billing accounts list)" \
    gcloud billing projects describe "$PROJECT" --quiet \
    --format="value(billingEnabled.yesno(yes='True',no=''))"
  for service in "${services[@]}" ${PROVIDER_SERVICES[@]+"${PROVIDER_SERVICES[@]}"}; do
    check "service $service" \
      "gcloud services enable $service --project=$PROJECT" \
      gcloud services list --enabled --project="$PROJECT" --quiet \
      --filter="config.name=$service" --format='value(config.name)'
  done
  check_bucket
  provider_doctor
  if [[ -n $SERVICE_ACCOUNT ]]; then
    for service in "$PROVIDER_DELETE_ROLE" roles/storage.objectAdmin; do
      check "$SERVICE_ACCOUNT has $service" \
        "gcloud projects add-iam-policy-binding $PROJECT --member=serviceAccount:$SERVICE_ACCOUNT --role=$service" \
        gcloud projects get-iam-policy "$PROJECT" --quiet \
        --flatten='bindings[].members' --format='value(bindings.role)' \
        --filter="bindings.members=serviceAccount:$SERVICE_ACCOUNT AND bindings.role=$service"
    done
  else
    say "note    SERVICE_ACCOUNT is empty: whether the project's default account may"
    say "        delete the machine ($PROVIDER_DELETE_ROLE), as its watchdog must, is not checked"
  fi
  ((HOSTS == 1)) ||
    say "note    gcloud speaks to several workers with a key of ssh-agent: ssh-add ~/.ssh/google_compute_engine"
  say "note    quota is not checked: https://console.cloud.google.com/iam-admin/quotas"
  [[ $DOCTOR_FAILED == no ]] || exit 1
}

check_bucket() {
  local region=${ZONE%-*} location
  check "bucket gs://$BUCKET" \
    "gcloud storage buckets create gs://$BUCKET --project=$PROJECT --location=$region --uniform-bucket-level-access" \
    gcloud storage buckets describe "gs://$BUCKET" --format='value(location)'
  location=$(printf %s "$ANSWER" | tr '[:upper:]' '[:lower:]')
  [[ -z $location || $location == "$region" ]] ||
    say "note    the bucket is in $location, the machine in $region: reading costs time and money"
}
