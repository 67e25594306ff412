#!/usr/bin/env bash
# What an engineer runs in between: format | lint | types | test | check | bench.
set -euo pipefail
EXTRAS="${EXTRAS:-dev}"
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$ROOT"
BIN="$(dirname "$PYTHON")"

case "${1:-}" in
  format)
    "$BIN/ruff" format clipkit data_tools launch tests
    "$BIN/ruff" check --fix clipkit data_tools launch tests
    ;;
  lint)
    "$BIN/ruff" format --check clipkit data_tools launch tests
    "$BIN/ruff" check clipkit data_tools launch tests
    "$BIN/lint-imports"
    "$BIN/shellcheck" -x launch/*.sh launch/*.sbatch .ci/run
    ;;
  types) "$BIN/mypy" ;;
  test) exec bash launch/test.sh "${@:2}" ;;
  check)
    bash launch/dev.sh lint
    bash launch/dev.sh types
    exec bash launch/test.sh
    ;;
  bench) exec "$BIN/clipkit" bench "${@:2}" ;;
  *)
    echo "usage: launch/dev.sh format|lint|types|test|check|bench" >&2
    exit 2
    ;;
esac
