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
  # the stamp's first line names the sources, the second the extras installed so far
  wanted="$(cd "$ROOT" && cksum setup.cfg pyproject.toml | tr '\n' ' ')$ROOT"
  local source="" have="" extra missing=false
  if [ -f "$stamp" ]; then { read -r source; read -r have; } < "$stamp" || true; fi
  case "$have" in *[!a-z,-]*) have="" ;; esac
  if [ "$source" != "$wanted" ]; then missing=true; fi
  for extra in ${EXTRAS//,/ }; do
    case ",$have," in *",$extra,"*) ;; *) missing=true; have="${have:+$have,}$extra" ;; esac
  done
  if $missing; then
    EXTRAS="$have"
    echo "installing clipkit${EXTRAS:+ with $EXTRAS} (torch and its libraries: a few GB)"
    # torch first: DeepSpeed's build asks it which operators it can compile
    "$PYTHON" -m pip install --quiet --disable-pip-version-check setuptools wheel torch torchvision
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-build-isolation -e "$ROOT${EXTRAS:+[$EXTRAS]}"
    printf '%s\n%s\n' "$wanted" "$have" > "$stamp"
    echo "installation: $((SECONDS - started)) s"
  fi
}
