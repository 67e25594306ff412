"""An add-on from outside the package that kills its process after step $DIE_AFTER_STEP."""

from __future__ import annotations

import os
import signal

from clipkit.addons.base import AddOn, StepView


class Dies(AddOn):
    """Kills its own process inside one step."""

    def after_step(self, result: StepView) -> None:
        """Before the step is logged or saved."""
        if os.environ.get("DIE_AFTER_STEP") == str(result.step + 1):
            os.kill(os.getpid(), signal.SIGKILL)


PART = Dies
