#!/usr/bin/env bash
# One node, several processes: launch/torchrun.sh NPROC CONFIG [key=value ...]
# Mistakes in config and files are reported first, in one line, before torchrun starts any process.
set -euo pipefail
if [ $# -lt 2 ]; then
  echo "usage: launch/torchrun.sh NPROC CONFIG [key=value ...]" >&2
  exit 2
fi
nproc="$1"
shift
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment

RANK=0 WORLD_SIZE="$nproc" "$PYTHON" -m clipkit train --check "$@"
exec "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node="$nproc" \
  --signals-to-handle=SIGTERM,SIGINT,SIGUSR1 -m clipkit train "$@"
