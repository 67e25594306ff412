#!/usr/bin/env bash
# Set-up and main job: demo shards -> training under DeepSpeed -> zero-shot evaluation -> table.
# Works from any folder, offline once installed; a second run rebuilds only what is missing.
set -euo pipefail
EXTRAS=""
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment

started=$SECONDS
cd "$ROOT"
export CLIPKIT_DATA="${CLIPKIT_DATA:-$ROOT/demo_data}"
export HF_HUB_OFFLINE=1
"$PYTHON" -m data_tools demo "$CLIPKIT_DATA"
if [ -d runs/quickstart ]; then # the quickstart's own folder: keep the last run beside the new one
  rm -rf runs/quickstart.previous
  mv runs/quickstart runs/quickstart.previous
fi
"$PYTHON" -m clipkit train configs/quickstart.yaml "$@"
echo "results: $ROOT/runs/quickstart/results.json"
echo "quickstart: $((SECONDS - started)) s"
