"""To and from graphs of PyTorch Geometric, jraph, igraph, pandas and polars, none of which need be installed."""

from .igraphs import from_igraph, to_igraph
from .jraphs import from_jraph, to_jraph
from .pyg import from_pyg, to_pyg
from .tables import to_pandas, to_polars
from .temporal import Snapshots, from_pyg_temporal, to_pyg_temporal

__all__ = [
    "Snapshots",
    "from_igraph",
    "from_jraph",
    "from_pyg",
    "from_pyg_temporal",
    "to_igraph",
    "to_jraph",
    "to_pandas",
    "to_polars",
    "to_pyg",
    "to_pyg_temporal",
]
