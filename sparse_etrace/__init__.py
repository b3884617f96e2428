"""Sparse-first graph learning on JAX: recurrent networks trained online, forward in time."""

from . import cells as cells, datasets as datasets, surrogate as surrogate
from ._algorithm import (
    BPTT as BPTT,
    D_RTRL as D_RTRL,
    ES_D_RTRL as ES_D_RTRL,
    Carry as Carry,
    Hybrid as Hybrid,
    Learner as Learner,
)
from ._connectivity import Connectivity as Connectivity
from ._convert import (
    from_bcoo as from_bcoo,
    from_bcsr as from_bcsr,
    from_csr as from_csr,
    from_dataframe as from_dataframe,
    from_dense as from_dense,
    from_edges as from_edges,
    from_networkx as from_networkx,
    from_scipy as from_scipy,
)
from ._filter import trainable as trainable
from ._graph import Graph as Graph
from ._online import Fit as Fit, fit as fit, online_grad as online_grad
from ._op import (
    Bounded as Bounded,
    ConvOp as ConvOp,
    ElemWiseOp as ElemWiseOp,
    ETraceOp as ETraceOp,
    LoraOp as LoraOp,
    MatMulOp as MatMulOp,
    SignLock as SignLock,
    SpMatMulOp as SpMatMulOp,
    check_op as check_op,
)
from ._param import (
    ElemWiseParam as ElemWiseParam,
    ETraceGrad as ETraceGrad,
    ETraceParam as ETraceParam,
    Fixed as Fixed,
    NonTempParam as NonTempParam,
    cut as cut,
)
from ._report import Plan as Plan, Report as Report, explain as explain, memory_plan as memory_plan
from ._transform import scale_spectral_radius as scale_spectral_radius, spectral_radius as spectral_radius

__all__ = [name for name in dir() if not name.startswith("_")]
