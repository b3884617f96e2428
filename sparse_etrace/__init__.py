"""Sparse-first graph learning on JAX: recurrent networks trained online, forward in time."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from . import cells, datasets, surrogate
from ._files import read_graph, write_graph
from ._graph.connectivity import Connectivity
from ._graph.graph import Graph
from ._graph.matrices import (
    from_bcoo,
    from_bcsr,
    from_csr,
    from_dataframe,
    from_dense,
    from_edges,
    from_networkx,
    from_scipy,
)
from ._graph.summary import GraphSummary, inspect_graph
from ._graph.transforms import scale_spectral_radius, spectral_radius
from ._learner import (
    BPTT,
    D_RTRL,
    ES_D_RTRL,
    OSTL,
    OTTT,
    RFLO,
    RTRL,
    TBPTT,
    UORO,
    Carry,
    EProp,
    Hybrid,
    Learner,
    SnAp,
    ThreeFactor,
    Window,
)
from ._model.trained import trainable
from ._op import Bounded, ConvOp, ElemWiseOp, ETraceOp, LoraOp, MatMulOp, SignLock, SpMatMulOp, Uses, check_op
from ._op.param import ElemWiseParam, ETraceGrad, ETraceParam, Fixed, NonTempParam, cut
from ._report.alignment import Alignment, gradient_alignment
from ._report.costs import LearnerCosts, learner_costs
from ._report.explain import Explanation, explain
from ._report.memory import MemoryPlan, memory_plan
from ._train.batches import Batches
from ._train.fit import fit
from ._train.fit_options import Checkpoint, Update, Validation
from ._train.fit_result import FitResult, Progress
from ._train.non_finite import NonFiniteError
from ._train.online import online_grad

__all__ = [
    "Alignment",
    "BPTT",
    "Batches",
    "Bounded",
    "Carry",
    "Checkpoint",
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
    "Explanation",
    "FitResult",
    "Fixed",
    "Graph",
    "GraphSummary",
    "Hybrid",
    "Learner",
    "LearnerCosts",
    "LoraOp",
    "MatMulOp",
    "MemoryPlan",
    "NonFiniteError",
    "NonTempParam",
    "OSTL",
    "OTTT",
    "Progress",
    "RFLO",
    "RTRL",
    "SignLock",
    "SnAp",
    "SpMatMulOp",
    "TBPTT",
    "ThreeFactor",
    "UORO",
    "Update",
    "Uses",
    "Validation",
    "Window",
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
    "inspect_graph",
    "learner_costs",
    "memory_plan",
    "online_grad",
    "plot",
    "read_graph",
    "scale_spectral_radius",
    "spectral_radius",
    "surrogate",
    "trainable",
    "write_graph",
]

if TYPE_CHECKING:
    from . import plot


_RENAMED = {"Plan": "MemoryPlan", "Report": "Explanation"}


def __getattr__(name: str) -> ModuleType:
    # Matplotlib takes as long to import as half the rest.
    if name == "plot":
        return importlib.import_module(".plot", __name__)
    now = f"; it is {_RENAMED[name]!r} now" if name in _RENAMED else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{now}")
