"""A command on all ranks: one of them says what went wrong, and all end with its status."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from clipkit.errors import ClipkitError

if TYPE_CHECKING:
    from clipkit.dist.group import World

_TIMEOUT_S = 6 * 3600.0  # ranks hash and read large shards apart; a dead rank is noticed otherwise


def run_on_ranks(work: Callable[[World], None], device: str) -> None:
    """Join the group, work, leave it. A failure is raised where a process is alone.

    Raises:
        ClipkitError: As `work` does, in a group of one.
    """
    from clipkit.dist import group

    world = group.setup(device=device, timeout_s=_TIMEOUT_S)
    if world.world_size == 1:
        try:
            work(world)
        finally:
            group.teardown()
        return
    status = _watched(work, world)
    if status:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # another rank may be stuck in a collective of a broken group
    group.teardown()


def _watched(work: Callable[[World], None], world: World) -> int:
    """Exit status of `work` on this rank; the others hear of a failure."""
    from clipkit.dist import group

    watch = group.AbortWatch(world)
    try:
        work(world)
    except ClipkitError as error:
        if watch.is_first():
            print(f"clipkit: {error}", file=sys.stderr, flush=True)
        watch.announce(error.exit_status)
        return error.exit_status
    except Exception:
        watch.follow()  # a collective broke because another rank has already said why
        watch.announce(1)
        raise
    finally:
        watch.close()
    return 0
