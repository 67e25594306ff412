"""Stand-ins for what the scripts start: python, torchrun, srun, scontrol; they note their calls."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.e2e.runs import finish

ROOT = Path(__file__).parents[2]
CLEAN = {
    k: v
    for k, v in os.environ.items()
    if not k.startswith(("SLURM_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_"))
}
# `-m clipkit train --check` says ok; `-m torch.distributed.run` and `-m clipkit train` are a life,
# played by life_<n> (or life) below $STAGE; anything else is python
PYTHON = """#!/bin/bash
case "$*" in
  *"clipkit train --check"*) echo "check $WORLD_SIZE $*" >> "$STAGE/calls"; exit "${CHECK:-0}" ;;
  *"-m clipkit train"*)
    n=$(cat "$STAGE/lives" 2> /dev/null || echo 0); echo $((n + 1)) > "$STAGE/lives"
    echo "life $*" >> "$STAGE/calls"
    echo "$MASTER_ADDR $MASTER_PORT $TMPDIR" \\
      "$TORCH_EXTENSIONS_DIR $TRITON_CACHE_DIR" >> "$STAGE/place"
    if [ -f "$STAGE/life_$n" ]; then source "$STAGE/life_$n"; else source "$STAGE/life"; fi ;;
  *) exec {python} "$@" ;;
esac
"""
# what a life may do: `status STATE STATUS` writes the run's status file, `checkpoint N` a folder
WORDS = """
status() {
  mkdir -p "$RUN"
  printf '{"state": "%s", "exit_status": %s, "n": %s}' "$1" "${2:-0}" "$RANDOM" > "$RUN/status.json"
}
checkpoint() { mkdir -p "$RUN/checkpoints/$(printf step_%08d "$1")"; }
"""


class Stage:
    """A config and fakes; `lives` are lines of bash, one string a life, the last one repeated."""

    def __init__(self, folder: Path, *lives: str) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.run = folder, folder / "runs" / "r"
        self.config = folder / "run.yaml"
        self.config.write_text(
            f"run: {{dir: {folder}/runs, name: r}}\ndata: {{train: a.tar}}\n"
            "train: {total_steps: 4, global_batch_size: 2}\n"
        )
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.program(
            "srun", f'echo "srun $*" >> {folder}/srun\nwhile [ "$1" != bash ]; do shift; done\n"$@"'
        )
        self.program(
            "scontrol",
            f'echo "$*" >> {folder}/scontrol\nif [ "$1" = show ]; then echo node7; echo node8; fi',
        )
        venv = folder / "venv" / "bin"
        venv.mkdir(parents=True)
        (venv / "python").write_text(PYTHON.replace("{python}", sys.executable))
        (venv / "python").chmod(0o755)
        sums = subprocess.run(
            ["cksum", "setup.cfg", "pyproject.toml"], cwd=ROOT, capture_output=True, text=True
        ).stdout
        stamp = " ".join(sums.splitlines()) + f" {ROOT}\n\n"
        (folder / "venv" / ".clipkit-installed").write_text(stamp)
        for number, life in enumerate(lives):
            last = number == len(lives) - 1
            (folder / ("life" if last else f"life_{number}")).write_text(WORDS + life + "\n")

    def program(self, name: str, body: str) -> None:
        """A command on PATH."""
        path = self.bin / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def environment(self, **extra: str) -> dict[str, str]:
        """Of the scripts; the variables of SLURM are those of job 123, two tasks on two nodes."""
        return {
            **CLEAN,
            "PATH": f"{self.bin}:{CLEAN['PATH']}",
            "PYTHONPATH": str(ROOT),
            "STAGE": str(self.folder),
            "RUN": str(self.run),
            "CLIPKIT_VENV": str(self.folder / "venv"),
            "CLIPKIT_ROOT": str(ROOT),
            "RELAUNCH_PAUSE": "0",
            "TMPDIR": str(self.folder),
            "SLURM_JOB_ID": "123",
            "SLURM_JOB_NODELIST": "node[7-8]",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_NTASKS": "2",
            "SLURM_SUBMIT_DIR": str(self.folder),
            **extra,
        }

    def start(self, script: str, *arguments: str, **extra: str) -> subprocess.Popen[str]:
        """launch/<script>, in a session of its own."""
        return subprocess.Popen(
            ["bash", str(ROOT / "launch" / script), *arguments],
            cwd=self.folder,
            env=self.environment(**extra),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def play(self, script: str, *arguments: str, **extra: str) -> tuple[int, str, str]:
        """(status, stdout, stderr) of a script from beginning to end."""
        return self.finish(self.start(script, *arguments, **extra))

    def finish(self, process: subprocess.Popen[str], timeout: float = 60) -> tuple[int, str, str]:
        """(status, stdout, stderr); a script that hangs is ended."""
        return finish(process, timeout)

    def lines(self, name: str) -> list[str]:
        """What was noted in a file: "calls", "place", "srun", "scontrol"."""
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    @property
    def lives(self) -> list[str]:
        """Arguments of each life."""
        return [line.removeprefix("life ") for line in self.lines("calls") if line[:4] == "life"]

    def wait_for(self, name: str) -> None:
        """Until a file is there."""
        deadline = time.monotonic() + 30
        while not (self.folder / name).exists():
            assert time.monotonic() < deadline, name
            time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process still runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
