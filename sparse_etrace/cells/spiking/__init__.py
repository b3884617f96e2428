"""Spiking neurons and synapses in units, composed by receptor: one model a file, `Population` puts them together."""

from .adex import AdEx as AdEx
from .adlif import AdLIF as AdLIF
from .alif import ALIF as ALIF
from .alpha import Alpha as Alpha
from .conductance import Conductance as Conductance
from .current import Current as Current
from .delta import Delta as Delta
from .double_exponential import DoubleExponential as DoubleExponential
from .exponential import Exponential as Exponential
from .gif import GIF as GIF
from .izhikevich import Izhikevich as Izhikevich
from .li import LI as LI
from .lif import LIF as LIF
from .population import Population as Population, PopulationState as PopulationState
from .whole_fly import whole_fly as whole_fly

__all__ = [
    "ALIF",
    "GIF",
    "LI",
    "LIF",
    "AdEx",
    "AdLIF",
    "Alpha",
    "Conductance",
    "Current",
    "Delta",
    "DoubleExponential",
    "Exponential",
    "Izhikevich",
    "Population",
    "PopulationState",
    "whole_fly",
]
