"""What may be done to features after the towers and before they are compared.

Shapes: n items, D embed dim.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Refinement(Protocol):
    """A change of features that knows one item at a time: centring, a shift, retrieved evidence.

    Attributes:
        name: Identity with all its parameters, for provenance and caches.
    """

    @property
    def name(self) -> str: ...

    def image(self, features: Tensor) -> Tensor:
        """(n, D) unit image features -> (n, D) unit."""
        ...

    def text(self, features: Tensor) -> Tensor:
        """(n, D) unit text features -> (n, D) unit."""
        ...
