"""The options of a command that refines features: a calibration, a memory, or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from clipkit.retrieval.refinement import Refinement
    from clipkit.towers.dual import FeatureEncoder

_LARGEST_SHIFT = 2.0
CalibrationOption = Annotated[
    str | None,
    typer.Option(help="File of clipkit calibrate, or auto: the one beside the checkpoint."),
]
MemoryOption = Annotated[
    str | None, typer.Option(help="Memory that refines features; clipkit-data memory build.")
]
FusionOption = Annotated[
    str, typer.Option(help="How: head (trained) or prototype (mean of what is found).")
]
RefineOption = Annotated[
    str | None,
    typer.Option(help="What the memory refines: both, image or text. Prototypes: text."),
]
ShiftOption = Annotated[
    float | None, typer.Option(help="Shift along the gap by this weight instead of centring.")
]


@dataclass(frozen=True)
class RefineOptions:
    """What a command line asks for; nothing by default.

    Raises:
        ConfigError: An option without what it is for.
    """

    calibration: str | None = None
    memory: str | None = None
    fusion: str = "head"
    refine: str | None = None
    shift: float | None = None

    def __post_init__(self) -> None:
        from clipkit.errors import ConfigError
        from clipkit.loading import check_options

        if self.shift is not None and not abs(self.shift) <= _LARGEST_SHIFT:
            raise ConfigError(f"--shift {self.shift}: choose a weight from -2 to 2; 0.5 closes the "
                              f"gap of the means")  # fmt: skip
        check_options(self.calibration, self.memory, self.fusion, self.refine, self.shift)

    def build(
        self, place: str | Path, encoder: FeatureEncoder, arch: str | None = None
    ) -> Sequence[Refinement]:
        """What is done to the features of a loaded checkpoint.

        Raises:
            ClipkitError: As `clipkit.loading.refinements_of`.
        """
        from clipkit.loading import refinements_of

        method: Any = self.fusion
        sides: Any = self.refine
        return refinements_of(
            place,
            calibration=self.calibration,
            memory=self.memory,
            method=method,
            sides=sides,
            shift=self.shift,
            arch=arch,
            weights=encoder.weights_hash,
        )
