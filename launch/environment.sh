# Sourced by the other scripts: the project's root and its virtual environment, created when missing.
# shellcheck shell=bash
# Sets ROOT and PYTHON. CLIPKIT_VENV names another environment; EXTRAS what to install besides clipkit.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${CLIPKIT_VENV:-$ROOT/.venv}"
PYTHON="$VENV/bin/python"
EXTRAS="${EXTRAS:-}"

# Installs clipkit with the given extras unless the same setup.cfg was installed with them before.
prepare_environment() {
  local started=$SECONDS wanted stamp="$VENV/.clipkit-installed"
  if [ ! -x "$PYTHON" ]; then
    echo "creating $VENV"
    "${CLIPKIT_PYTHON:-python3}" -m venv "$VENV"
  fi
  wanted="$(cd "$ROOT" && cksum setup.cfg pyproject.toml) $EXTRAS $ROOT"
  if [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
    echo "installing clipkit${EXTRAS:+ with $EXTRAS} (torch and its libraries: a few GB)"
    # torch first: DeepSpeed's build asks it which operators it can compile
    "$PYTHON" -m pip install --quiet --disable-pip-version-check setuptools wheel torch torchvision
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-build-isolation -e "$ROOT${EXTRAS:+[$EXTRAS]}"
    printf '%s' "$wanted" > "$stamp"
    echo "installation: $((SECONDS - started)) s"
  fi
}
