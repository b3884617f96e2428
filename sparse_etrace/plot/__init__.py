"""Figures, legible at paper size. Each function returns a matplotlib `Figure`; `figure.savefig` saves it."""

from ._alignment import alignment
from ._connectivity import connectivity
from ._degrees import degrees
from ._in_time import states, traces
from ._learning_curves import learning_curves
from ._raster import raster
from ._weight_change import weight_change
from ._weights import weights
from .style import MARKERS, PALETTE

__all__ = [
    "MARKERS",
    "PALETTE",
    "alignment",
    "connectivity",
    "degrees",
    "learning_curves",
    "raster",
    "states",
    "traces",
    "weight_change",
    "weights",
]
