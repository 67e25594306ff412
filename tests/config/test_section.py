"""What all sections share."""

import pytest
from pydantic import ValidationError

from clipkit.config.section import Section


class Sizes(Section):
    """A section."""

    side: float = 1.0


def test_sections_are_strict():
    with pytest.raises(ValidationError, match="frozen"):
        Sizes().side = 2.0
    with pytest.raises(ValidationError, match="Extra inputs"):
        Sizes(sied=1.0)
    with pytest.raises(ValidationError, match="finite"):
        Sizes(side=float("inf"))
