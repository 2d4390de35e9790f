# shellcheck shell=bash
# shellcheck disable=SC2034,SC2153  # the files of lib/ share their variables
# What is shown, and how gcloud is called.

# Standard output as the user has it, also inside a $(...).
exec 3>&1

# A remark. In a dry run it is a comment, for everything printed can be pasted.
say() {
  if [[ $DRY_RUN == yes ]]; then
    printf '# %s\n' "$*" >&3
  else
    printf '%s\n' "$*" >&3
  fi
}

fail() {
  printf 'tpu: %s\n' "$*" >&2
  exit 1
}

# A mistake in what was typed or configured.
misuse() {
  printf 'tpu: %s\n' "$*" >&2
  exit 2
}

# The arguments as one line that a shell reads back as the same arguments.
shell_quote() {
  local argument flag line=''
  for argument in "$@"; do
    flag=''
    if [[ ! $argument =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
      [[ ! $argument =~ ^[A-Za-z0-9_-]+= ]] || flag=${BASH_REMATCH[0]}
      argument=${argument#"$flag"}
      argument="$flag'${argument//\'/\'\\\'\'}'"
    fi
    line+="${line:+ }$argument"
  done
  printf '%s' "$line"
}

# Runs a line that changes something, after showing it.
act() {
  if [[ $DRY_RUN == yes ]]; then
    printf '%s\n' "$(shell_quote "$@")" >&3
    return 0
  fi
  printf '+ %s\n' "$(shell_quote "$@")" >&2
  "$@" </dev/null
}

# Writes a file of lines.
act_write() {
  local file=$1
  shift
  if [[ $DRY_RUN == yes ]]; then
    printf 'printf %s %s >%s\n' "'%s\n'" "$(shell_quote "$@")" "$(shell_quote "$file")" >&3
  else
    printf '%s\n' "$@" >"$file"
  fi
}

# Runs a query and puts what it prints into ANSWER. Returns 1 if what is asked
# for does not exist and 2 if there was no answer: the two must not be confused,
# or a fault of the network would look like a machine that is gone.
ask() {
  ANSWER=''
  if [[ $DRY_RUN == yes ]]; then
    printf '%s\n' "$(shell_quote "$@")" >&3
    return 0
  fi
  if ANSWER=$("$@" 2>"$WORK/errors" </dev/null); then
    return 0
  fi
  if grep -qE 'NOT_FOUND|was not found|not found: 404|matched no objects' "$WORK/errors"; then
    return 1
  fi
  cat "$WORK/errors" >&2
  return 2
}

# Asks a few times until there is an answer. Returns 1 if what is asked for does
# not exist.
ask_surely() {
  local attempt found
  for attempt in 1 2 3 4 5; do
    found=0
    ask "$@" || found=$?
    ((found == 2)) || return "$found"
    ((attempt == 5)) || pause "$POLL_SECONDS"
  done
  fail "no answer from Google Cloud; see above."
}

# Sleeps so that a signal is acted on at once.
pause() {
  [[ $DRY_RUN == yes ]] && return 0
  # Away from the output, or a reader of it would wait for the sleep.
  sleep "$1" >/dev/null 2>&1 3>&- &
  wait $! || true
}
