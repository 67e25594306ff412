# Sourced by torchrun.sh and slurm.sbatch: starts a run, passes signals on, starts it anew after a crash.
# shellcheck shell=bash
# Wants ROOT, PYTHON and a function `launch LIFE CONFIG [key=value ...]` that starts one life in the
# foreground. What happens next is decided by the run's status.json, never by the launcher's exit
# status: torchrun returns 1 after SIGTERM, after a mistake of the user and after a crash alike.
#
# RELAUNCHES: crashes in a row, without a new checkpoint between them, after which it gives up.
# RELAUNCH_PAUSE: seconds before the first relaunch; doubled each time, 600 at most.

# Set by who sources this: PASS_AS: the signal that a life is told to stop with, where it is not the one
# received; PATIENCE: seconds after a signal for which a life is waited for.

RELAUNCHES="${RELAUNCHES:-3}"
RELAUNCH_PAUSE="${RELAUNCH_PAUSE:-10}"
LIFE_MARK="${HOSTNAME:-host}-$$-$RANDOM" # in the environment of all that is started: no orphan hides
child="" received="" told_at=0
# torchrun kills its ranks this long after a signal; its own 30 s, all that older ones know, are too short
# for a large checkpoint
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-110}"

# The first signal decides; a second one would end torchrun and with it the save, which only Ctrl-C may.
pass_on() {
  if [ -n "$received" ] && [ "$1" != INT ]; then return; fi
  if [ -z "$received" ]; then received="$1" told_at="$SECONDS"; fi
  tell "$1"
}

tell() {
  if [ -n "$child" ]; then kill -s "${PASS_AS:-$1}" "$child" 2>/dev/null || true; fi
}

say() {
  echo "clipkit: $1" >&2 || true
}

catch_signals() {
  local name
  trap '' PIPE # who reads the output, as in `| tee log`, may leave: the run goes on
  for name in TERM INT USR1; do
    # shellcheck disable=SC2064  # the name of now
    trap "pass_on $name" "$name"
  done
  trap "pass_on TERM" HUP # the terminal was closed
}

# Runs a command so that traps act while it runs; its exit status. `child` stays set when patience ends.
attended() {
  local status=0
  CLIPKIT_LAUNCH="$LIFE_MARK" "$@" &
  child=$!
  if [ -n "$received" ]; then tell "$received"; fi # it came when there was nobody to tell
  wait "$child" || status=$?
  while kill -0 "$child" 2>/dev/null; do # a signal ended the wait, not the command
    while [ -n "${PATIENCE:-}" ] && kill -0 "$child" 2>/dev/null; do
      if [ $((SECONDS - told_at)) -ge "$PATIENCE" ]; then return 1; fi
      sleep 1
    done
    status=0
    wait "$child" || status=$?
  done
  child=""
  return "$status"
}

# A launcher that was killed leaves its processes behind, each in a session of its own.
end_orphans() {
  local place left=()
  for place in $(grep -lszxF "CLIPKIT_LAUNCH=$LIFE_MARK" /proc/[0-9]*/environ 2>/dev/null || true); do
    place="${place#/proc/}"
    left+=("${place%/environ}")
  done
  if [ ${#left[@]} -gt 0 ]; then
    say "ending ${#left[@]} processes that were left behind: ${left[*]}"
    kill -KILL "${left[@]}" 2>/dev/null || true
  fi
}

# Fills FOLDER and NAME from the config.
# shellcheck disable=SC2034  # NAME is for those who source this
place() {
  local facts
  facts="$("$PYTHON" "$ROOT/launch/run_state.py" place "$@")" || return $?
  { read -r FOLDER; read -r NAME; } <<< "$facts"
}

# Fills STATE, EXIT_STATUS, CHECKPOINT, DIGEST and LIFE from the run's files.
# shellcheck disable=SC2034  # LIFE is for those who source this
look() {
  local facts
  facts="$("$PYTHON" "$ROOT/launch/run_state.py" state "$FOLDER")" || return $?
  { read -r STATE; read -r EXIT_STATUS; read -r CHECKPOINT DIGEST LIFE; } <<< "$facts"
}

# Whether a run is over, with its RESULT, after a life that began at digest $1 and ended with status $2.
settled() {
  look || return 1
  if [ "$DIGEST" = "$1" ]; then # it ended before it wrote its status
    STATE=none EXIT_STATUS=""
  fi
  RESULT="${EXIT_STATUS:-$2}"
  case "$STATE/$RESULT" in
    done/*) RESULT=0 ;;
    preempted/*)
      say "$FOLDER: preempted, saved as $CHECKPOINT"
      RESULT=$((128 + $(kill -l "${received:-TERM}")))
      ;;
    */[2-5]) ;;
    *) return 1 ;;
  esac
}

# Lives of a run until it is done (0), preempted (STATE says so; 128 + signal), failed by a mistake
# of the user or by its numbers (2 to 5, clipkit/errors.py), or has crashed too often (the last life's exit status).
supervise() {
  local status life=0 crashes=0 pause="$RELAUNCH_PAUSE" digest checkpoint
  place "$@" || return $?
  while :; do
    look
    digest="$DIGEST" checkpoint="$CHECKPOINT" status=0
    attended launch "$life" "$@" || status=$?
    if [ -z "$child" ]; then end_orphans; fi
    if settled "$digest" "$status"; then return "$RESULT"; fi
    if [ "$status" -eq 0 ] && [ "$STATE" != failed ]; then return 0; fi
    if [ -n "$received" ]; then return $((128 + $(kill -l "$received"))); fi
    if [ "$CHECKPOINT" != "$checkpoint" ]; then crashes=0 pause="$RELAUNCH_PAUSE"; fi
    crashes=$((crashes + 1))
    if [ "$crashes" -gt "$RELAUNCHES" ]; then
      say "$FOLDER: crashed $crashes times without a new checkpoint; giving up"
      return $((status ? status : 1))
    fi
    say "$FOLDER: crashed (exit status $status); relaunch $crashes of $RELAUNCHES in $pause s"
    attended sleep "$pause" || true
    if [ -n "$received" ]; then return $((128 + $(kill -l "$received"))); fi
    if settled "$digest" "$status"; then return "$RESULT"; fi # another machine has said it meanwhile
    pause=$((pause * 2 > 600 ? 600 : pause * 2))
    if [ "$life" -eq 0 ]; then set -- "$@" run.resume=auto; fi
    life=$((life + 1))
  done
}
