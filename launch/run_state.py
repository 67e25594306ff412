"""What the launch scripts ask of a run: `python launch/run_state.py CONFIG [key=value ...]`.

Prints five lines: the run folder, the run's name, the state in its status.json ("none" without
one), the exit status noted there (empty without one), and a mark that differs after each new
checkpoint or new status file: "<newest checkpoint> <digest of status.json>".
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from clipkit.config.load import load_config
from clipkit.errors import ClipkitError


def main(arguments: list[str]) -> int:
    """Print the five lines; a mistake in the config is one line on stderr and its exit status."""
    try:
        run = load_config(arguments[0], arguments[1:]).run
    except ClipkitError as error:
        print(f"clipkit: {error}", file=sys.stderr)
        return error.exit_status
    folder = Path(run.dir) / run.name
    state, status, digest = "none", "", "-"
    try:
        content = (folder / "status.json").read_bytes()
        digest = hashlib.sha256(content).hexdigest()[:16]
        found = json.loads(content)
        state, status = str(found["state"]), str(found.get("exit_status") or "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # no run yet, or a file of someone else: nothing is known
    checkpoints = sorted(p.name for p in folder.glob("checkpoints/step_*"))
    newest = checkpoints[-1] if checkpoints else "-"
    print(folder, run.name, state, status, f"{newest} {digest}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
