"""Each kind of user error has its own exit status."""

from clipkit import errors


def test_statuses_differ() -> None:
    kinds = [errors.ConfigError, errors.DataError, errors.CheckpointError]
    assert len({k.exit_status for k in kinds}) == 3
    assert all(issubclass(k, errors.ClipkitError) and k.exit_status for k in kinds)
