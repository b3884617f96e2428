"""The ops: one idea, many connectivities."""

from .check import check_op as check_op
from .contract import ETraceOp as ETraceOp, Uses as Uses
from .conv import ConvOp as ConvOp
from .delays import Ring as Ring
from .elemwise import ElemWiseOp as ElemWiseOp, ElemWiseParam as ElemWiseParam
from .gap import GapJunctions as GapJunctions
from .graphconv import GraphConvOp as GraphConvOp
from .lora import LoraOp as LoraOp
from .matmul import MatMulOp as MatMulOp
from .refloor import refloor as refloor
from .spmatmul import SpMatMulOp as SpMatMulOp
from .spread import spread as spread
from .ties import Ties as Ties, ties as ties
from .weight_fn import Bounded as Bounded, Frozen as Frozen, SignLock as SignLock
