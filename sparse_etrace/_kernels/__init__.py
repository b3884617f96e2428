"""Products over the synapses of a `Connectivity`: the only hardware-aware code."""

from . import dense as dense, features as features, influence as influence, trace as trace
from .ids import frame as frame, spmv_ids as spmv_ids
from .products import (
    as_steps as as_steps,
    sampled as sampled,
    sampled_sum as sampled_sum,
    spmv as spmv,
    spmv_t as spmv_t,
)
from .ring import spmv_ring as spmv_ring
