"""Sparse-first graph learning on JAX: recurrent networks trained online, forward in time."""

from importlib import import_module as _import_module
from types import ModuleType as _ModuleType
from typing import TYPE_CHECKING as _TYPE_CHECKING

from . import (
    cells as cells,
    datasets as datasets,
    evaluate as evaluate,
    generate as generate,
    interchange as interchange,
    rewiring as rewiring,
    spikes as spikes,
    stimuli as stimuli,
    surrogate as surrogate,
    transform as transform,
)
from ._files import read_graph as read_graph, write_graph as write_graph
from ._graph.connectivity import Connectivity as Connectivity
from ._graph.graph import Graph as Graph
from ._graph.matrices import (
    from_bcoo as from_bcoo,
    from_bcsr as from_bcsr,
    from_csr as from_csr,
    from_dataframe as from_dataframe,
    from_dense as from_dense,
    from_edges as from_edges,
    from_scipy as from_scipy,
)
from ._graph.networks import from_networkx as from_networkx
from ._graph.summary import GraphSummary as GraphSummary, inspect_graph as inspect_graph
from ._graph.transforms import scale_spectral_radius as scale_spectral_radius, spectral_radius as spectral_radius
from ._kernels.native import kernels as kernels
from ._learner import (
    BPTT as BPTT,
    D_RTRL as D_RTRL,
    ES_D_RTRL as ES_D_RTRL,
    OSTL as OSTL,
    OTTT as OTTT,
    RFLO as RFLO,
    RTRL as RTRL,
    TBPTT as TBPTT,
    UORO as UORO,
    Bridged as Bridged,
    Carry as Carry,
    EProp as EProp,
    Events as Events,
    Hybrid as Hybrid,
    Learner as Learner,
    SnAp as SnAp,
    ThreeFactor as ThreeFactor,
    TraceLearner as TraceLearner,
    TraceTerms as TraceTerms,
    Window as Window,
)
from ._model.trained import trainable as trainable
from ._op import (
    Bounded as Bounded,
    ConvOp as ConvOp,
    ElemWiseOp as ElemWiseOp,
    ElemWiseParam as ElemWiseParam,
    ETraceOp as ETraceOp,
    Frozen as Frozen,
    GapJunctions as GapJunctions,
    GraphConvOp as GraphConvOp,
    LoraOp as LoraOp,
    MatMulOp as MatMulOp,
    Ring as Ring,
    SignLock as SignLock,
    SpMatMulOp as SpMatMulOp,
    Ties as Ties,
    Uses as Uses,
    check_op as check_op,
    refloor as refloor,
    spread as spread,
    ties as ties,
)
from ._op.param import (
    ETraceGrad as ETraceGrad,
    ETraceParam as ETraceParam,
    Fixed as Fixed,
    NonTempParam as NonTempParam,
    cut as cut,
)
from ._read_sharded import read_sharded as read_sharded
from ._report.alignment import Alignment as Alignment, gradient_alignment as gradient_alignment
from ._report.compare import Comparison as Comparison, compare as compare
from ._report.costs import LearnerCosts as LearnerCosts, learner_costs as learner_costs
from ._report.explain import Explanation as Explanation, explain as explain
from ._report.memory import MemoryPlan as MemoryPlan, memory_plan as memory_plan
from ._sharding import shard as shard, unshard as unshard
from ._train.batches import Batches as Batches
from ._train.check_learner import check_learner as check_learner
from ._train.fit import fit as fit
from ._train.fit_options import Checkpoint as Checkpoint, Update as Update, Validation as Validation
from ._train.fit_result import FitResult as FitResult, Progress as Progress
from ._train.non_finite import NonFiniteError as NonFiniteError
from ._train.online import online_grad as online_grad
from ._train.predict import predict as predict
from ._train.rewire import Rewired as Rewired, rewire as rewire
from ._train.stream import SnapshotStream as SnapshotStream
from .spikes.record import RecordedState as RecordedState, Recorder as Recorder, record as record

if _TYPE_CHECKING:
    from . import plot as plot

__all__ = sorted({"plot", *(name for name in dir() if not name.startswith("_"))})


_RENAMED = {"Plan": "MemoryPlan", "Report": "Explanation"}


def __getattr__(name: str) -> _ModuleType:
    # Matplotlib takes as long to import as half the rest.
    if name == "plot":
        return _import_module(".plot", __name__)
    now = f"; it is {_RENAMED[name]!r} now" if name in _RENAMED else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{now}")
