"""Sparse-first graph learning on JAX: recurrent networks trained online, forward in time."""

from . import cells, datasets, surrogate
from ._algorithm import (
    BPTT,
    D_RTRL,
    ES_D_RTRL,
    OSTL,
    OTTT,
    RFLO,
    TBPTT,
    UORO,
    Carry,
    EProp,
    Hybrid,
    Learner,
    ThreeFactor,
)
from ._alignment import Alignment, gradient_alignment
from ._connectivity import Connectivity
from ._convert import (
    from_bcoo,
    from_bcsr,
    from_csr,
    from_dataframe,
    from_dense,
    from_edges,
    from_networkx,
    from_scipy,
)
from ._filter import trainable
from ._graph import Graph
from ._online import Fit, fit, online_grad
from ._op import (
    Bounded,
    ConvOp,
    ElemWiseOp,
    ETraceOp,
    LoraOp,
    MatMulOp,
    SignLock,
    SpMatMulOp,
    check_op,
)
from ._param import ElemWiseParam, ETraceGrad, ETraceParam, Fixed, NonTempParam, cut
from ._report import Plan, Report, explain, memory_plan
from ._transform import scale_spectral_radius, spectral_radius

__all__ = [
    "Alignment",
    "BPTT",
    "Bounded",
    "Carry",
    "Connectivity",
    "ConvOp",
    "D_RTRL",
    "ES_D_RTRL",
    "ETraceGrad",
    "ETraceOp",
    "ETraceParam",
    "EProp",
    "ElemWiseOp",
    "ElemWiseParam",
    "Fit",
    "Fixed",
    "Graph",
    "Hybrid",
    "Learner",
    "LoraOp",
    "MatMulOp",
    "NonTempParam",
    "OSTL",
    "OTTT",
    "Plan",
    "RFLO",
    "Report",
    "SignLock",
    "SpMatMulOp",
    "TBPTT",
    "ThreeFactor",
    "UORO",
    "cells",
    "check_op",
    "cut",
    "datasets",
    "explain",
    "fit",
    "from_bcoo",
    "from_bcsr",
    "from_csr",
    "from_dataframe",
    "from_dense",
    "from_edges",
    "from_networkx",
    "from_scipy",
    "gradient_alignment",
    "memory_plan",
    "online_grad",
    "scale_spectral_radius",
    "spectral_radius",
    "surrogate",
    "trainable",
]
