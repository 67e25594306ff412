"""The errors a user can cause.

Each message names the thing and the remedy; the command line prints it as one line.

Exit statuses of every `clipkit` command, also in status.json of a run:

    0   done, or preempted: stopped by a signal and saved
    1   a crash: starting again may help
    2   config      3  data      4  checkpoint      5  training goes wrong: starting again is no use
    75  a rank hangs; the others ended the run: starting again helps
"""

HANG_STATUS = 75

_LONGEST = 3000  # characters of a message


class ClipkitError(Exception):
    """Base of all errors that are the user's to mend; the command line ends with `exit_status`."""

    exit_status = 2

    def __str__(self) -> str:
        """One printable line: names in it come from files, and may hold a terminal's commands."""
        text = super().__str__()
        if not text.isprintable():
            text = "".join(
                c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
            )
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


class ConfigError(ClipkitError):
    """A setting is misspelt, missing, out of range, or does not fit another one."""


class DataError(ClipkitError):
    """Shards are missing, damaged, too small, or do not hold what the config asks for."""

    exit_status = 3


class LostWorkerError(ClipkitError):
    """The machine killed a loader's process: a crash that is told in one line."""

    exit_status = 1


class CheckpointError(ClipkitError):
    """A checkpoint is missing, damaged, or belongs to another model or data set."""

    exit_status = 4


class TrainingError(ClipkitError):
    """Training itself goes wrong, again and again: the numbers, not the files."""

    exit_status = 5
