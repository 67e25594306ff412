#!/usr/bin/env bash
# torchrun on one machine or several, started anew after a crash: launch/torchrun.sh NPROC CONFIG [key=value ...]
# Several machines: the same command on each, with NODES=4 and MASTER_ADDR=<one of them> (MASTER_PORT: 29500).
# Mistakes in config and files are reported first, in one line, before torchrun starts any process.
# SIGTERM, SIGUSR1 and Ctrl-C save and stop. RELAUNCHES, RELAUNCH_PAUSE: see relaunch.sh.
set -euo pipefail
if [ $# -lt 2 ]; then
  echo "usage: [NODES=N MASTER_ADDR=HOST] launch/torchrun.sh NPROC CONFIG [key=value ...]" >&2
  exit 2
fi
nproc="$1" nodes="${NODES:-1}"
shift
if [ "$nodes" -gt 1 ] && [ -z "${MASTER_ADDR:-}" ]; then
  echo "launch/torchrun.sh: NODES=$nodes needs MASTER_ADDR, the same on every machine" >&2
  exit 2
fi
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment
# shellcheck source=launch/relaunch.sh
source "$ROOT/launch/relaunch.sh"

launch() {
  local meeting=(--standalone)
  if [ "$nodes" -gt 1 ]; then
    # One machine may notice a crash minutes after another. Each life meets under a name of its own, from
    # the life before it: who comes back first waits, and does not join the one that is ending.
    meeting=(--nnodes="$nodes" --rdzv-backend=c10d --rdzv-id="$NAME-$LIFE"
      --rdzv-endpoint="$MASTER_ADDR:${MASTER_PORT:-29500}")
  fi
  shift
  # a session of its own: a Ctrl-C in the terminal reaches it once, through this script
  exec setsid "$PYTHON" -m torch.distributed.run "${meeting[@]}" --nproc_per_node="$nproc" \
    --signals-to-handle=SIGTERM,SIGINT,SIGUSR1 -m clipkit train "$@"
}

RANK=0 WORLD_SIZE="$((nproc * nodes))" "$PYTHON" -m clipkit train --check "$@"
catch_signals
supervise "$@"
