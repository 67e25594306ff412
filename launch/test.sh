#!/usr/bin/env bash
# Set-up and tests. Without arguments: the default suite, at most 10 minutes on 2 cores.
# --all: the slow tests too, with all extras, linters and shellcheck; what CI runs. Other arguments go to pytest.
set -euo pipefail
all=false
if [ "${1:-}" = "--all" ]; then
  all=true
  shift
fi
EXTRAS=dev
if $all; then EXTRAS=dev,ray,spark; fi
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment

cd "$ROOT"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu
if $all; then
  bash launch/dev.sh lint
  bash launch/dev.sh types
  "$PYTHON" -m pytest -m "not gpu and not multi_gpu" "$@"
else
  "$PYTHON" -m pytest "$@"
fi
