"""Spiking neurons and synapses in units, composed by receptor: one model a file, `Population` puts them together."""

from .alif import ALIF as ALIF
from .alpha import Alpha as Alpha
from .conductance import Conductance as Conductance
from .current import Current as Current
from .delta import Delta as Delta
from .double_exponential import DoubleExponential as DoubleExponential
from .exponential import Exponential as Exponential
from .li import LI as LI
from .lif import LIF as LIF
from .population import Population as Population, PopulationState as PopulationState

__all__ = [
    "ALIF",
    "LI",
    "LIF",
    "Alpha",
    "Conductance",
    "Current",
    "Delta",
    "DoubleExponential",
    "Exponential",
    "Population",
    "PopulationState",
]
