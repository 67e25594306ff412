"""The errors a user can cause.

Each message names the thing and the remedy; the command line prints it as one line.
"""


class ClipkitError(Exception):
    """Base of all errors that are the user's to mend; the command line ends with `exit_status`."""

    exit_status = 2


class ConfigError(ClipkitError):
    """A setting is misspelt, missing, out of range, or does not fit another one."""


class DataError(ClipkitError):
    """Shards are missing, damaged, too small, or do not hold what the config asks for."""

    exit_status = 3


class CheckpointError(ClipkitError):
    """A checkpoint is missing, damaged, or belongs to another model or data set."""

    exit_status = 4
