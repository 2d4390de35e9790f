#!/usr/bin/env bash
# Makes the Python environment of BACKEND, once.
# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

# The images come with Python 3.10; this package needs 3.11.
python=3.11
venv=$(venv_directory)

trap 'reply FAILED setup' ERR
if [[ ! -e $venv/complete ]]; then
  # pip refuses on Ubuntu 24.04, the images of TPU7x.
  command -v uv >/dev/null || python3 -m pip install --quiet --user uv ||
    curl --location --silent --show-error --fail https://astral.sh/uv/install.sh | sh
  rm -rf "$venv"
  uv venv --quiet --python "$python" "$venv"
  # All in one resolution: a later one would change what the earlier one chose.
  uv pip install --quiet --python "$venv/bin/python" \
    --requirement "$checkout/tpu_scripts/requirements/$BACKEND.txt"
  touch "$venv/complete"
fi
systemctl is-active --quiet tpu-watchdog.timer ||
  echo "WARNING: the watchdog does not run: this machine will not delete itself." >&2
reply READY
