"""Products over the synapses of a `Connectivity`: the only hardware-aware code."""

from . import dense as dense, trace as trace
from .products import sampled as sampled, spmv as spmv, spmv_t as spmv_t
