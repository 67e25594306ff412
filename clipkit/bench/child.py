"""The measured process: one task as JSON in, one answer as JSON out."""

from __future__ import annotations

import ctypes
import json
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Entry point of `python -m clipkit.bench.child`."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # ends with whoever measures
    task = json.loads(sys.argv[1])
    import torch  # after the line above: seconds in which the measuring process may end

    torch.set_num_threads(task["threads"])
    if task["what"].startswith("loss"):
        from clipkit.bench import loss as room
    elif task["what"].startswith("retrieval"):
        from clipkit.bench import retrieval as room  # type: ignore[no-redef]
    elif task["what"].startswith("loader"):
        from clipkit.bench import loader as room  # type: ignore[no-redef]
    elif task["what"].startswith("addons"):
        from clipkit.bench import addons as room  # type: ignore[no-redef]
    elif task["what"].startswith("checkpoint"):
        from clipkit.bench import checkpoint as room  # type: ignore[no-redef]
    else:
        from clipkit.bench import step as room  # type: ignore[no-redef]
    print(json.dumps(room.TASKS[task["what"]](task)))


if __name__ == "__main__":
    main()
