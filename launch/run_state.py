"""What the launch scripts ask of a run, answered in lines.

place CONFIG [key=value ...]   the run folder; the run's name
state FOLDER                   the state in status.json ("none" without one); the exit status
                               noted there (empty without one); the newest checkpoint, a digest
                               of status.json and one of the life that wrote it, the same from
                               its start on; "-" where there is none
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

LIFE = ("host", "pid", "job_id", "started")  # of status.json: these never change within a life


def place(config: str, overrides: list[str]) -> list[str]:
    """Where a config's run lives, and its name.

    Raises:
        ConfigError: A mistake in the config.
    """
    from clipkit.config.load import load_config  # not needed, and slow, between two lives

    run = load_config(config, overrides).run
    return [str(Path(run.dir) / run.name), run.name]


def state(folder: Path) -> list[str]:
    """How the run stands, by its files alone."""
    name, status, digest, life = "none", "", "-", "-"
    try:
        content = (folder / "status.json").read_bytes()
        digest = _digest(content)
        found = json.loads(content)
        name, status = str(found["state"]), str(found.get("exit_status") or "")
        life = _digest(json.dumps([found.get(key) for key in LIFE]).encode())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # no run yet, or a file of someone else: nothing is known
    newest = max((p.name for p in folder.glob("checkpoints/step_*")), default="-")
    return [name, status, f"{newest} {digest} {life}"]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def main(arguments: list[str]) -> int:
    """Print the answer; a mistake in the config is one line on stderr and its exit status."""
    if arguments[0] == "state":
        print(*state(Path(arguments[1])), sep="\n")
        return 0
    from clipkit.errors import ClipkitError

    try:
        print(*place(arguments[1], arguments[2:]), sep="\n")
    except ClipkitError as error:
        print(f"clipkit: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
