"""Recurrent cells: modules that are called as `state, out = cell(state, x)` and take any op."""

from . import graph as graph, spiking as spiking
from .alif import ALIF as ALIF, ALIFState as ALIFState
from .gru import GRU as GRU
from .leaky_rate import LeakyRate as LeakyRate
from .lif import LIF as LIF, LIFState as LIFState
from .lru import LRU as LRU, LRUState as LRUState
from .mgu import MGU as MGU
