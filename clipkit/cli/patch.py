"""`clipkit patch BASE TUNED OUT`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_MODEL = "Run folder, checkpoint, exported folder; with --arch a weights file or tag."


def patch(
    base: Annotated[Path, typer.Argument(help=f"The model before tuning. {_MODEL}")],
    tuned: Annotated[Path, typer.Argument(help=f"The model after it. {_MODEL}")],
    out: Annotated[Path, typer.Argument(help="New folder.")],
    weight: Annotated[float, typer.Option(help="Share of TUNED, 0 to 1.")] = 0.6,
    arch: Annotated[
        str | None, typer.Option(help="Architecture of what is a weights file or tag.")
    ] = None,
) -> None:
    """Write (1 - weight) * BASE + weight * TUNED in open_clip's layout.

    To keep most of what tuning gained and lose less of what it cost. Trained heads are left out.
    """
    from clipkit.loading import load_towers, new_folder, write_export
    from clipkit.towers.interpolate import interpolate

    new_folder(out)
    towers = [load_towers(p, arch=None if p.is_dir() else arch) for p in (base, tuned)]
    state = interpolate(towers[0], towers[1], weight)
    write_export(out, state, towers[1].config)
    print(f"{out}: {1 - weight:g} * {base} + {weight:g} * {tuned}")
    if any(name.endswith("running_var") for name in state):
        print("note: batch norm's running statistics are averaged too: they are of no data now")
