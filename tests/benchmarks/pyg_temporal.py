"""Cells of PyTorch Geometric Temporal with random weights, five steps of each: makes tests/pyg_temporal.npz.

Run it in an environment of its own: `pip install torch torch_geometric torch_geometric_temporal` and what these import.
"""

from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch_geometric_temporal.nn.recurrent import DCRNN, TGCN, GConvGRU

NODES, FEATURES, HIDDEN, STEPS, EDGES = 6, 2, 3, 5, 12
CELLS = {
    "tgcn": lambda: TGCN(FEATURES, HIDDEN),
    "gconv_gru": lambda: GConvGRU(FEATURES, HIDDEN, 3),
    "dcrnn": lambda: DCRNN(FEATURES, HIDDEN, 3),
}


@torch.no_grad()
def run(cell, edges, weight, xs):
    """The hidden state after each step."""
    states = [None]
    for x in xs:
        states.append(cell(x, edges, weight, states[-1]))
    return torch.stack(states[1:]).numpy()


def main():
    torch.manual_seed(0)
    pairs = torch.randperm(NODES * (NODES - 1))[:EDGES]  # different pairs of different nodes; DCRNN sees their order
    pre, other = pairs // (NODES - 1), pairs % (NODES - 1)
    edges, weight = torch.stack([pre, other + (other >= pre)]), 0.5 + torch.rand(EDGES)
    order, xs = torch.randperm(EDGES), torch.randn(STEPS, NODES, FEATURES)
    stored = {"edge_index": edges, "edge_weight": weight, "xs": xs, "shuffled": order}
    for name, make in CELLS.items():
        cell = make()
        with torch.no_grad():
            for parameter in cell.parameters():
                parameter.copy_(0.5 * torch.randn_like(parameter))
        stored |= {f"{name}/{key}": value for key, value in cell.state_dict().items()}
        stored |= {name: run(cell, edges, weight, xs)}
        stored |= {f"{name}_shuffled": run(cell, edges[:, order], weight[order], xs)}
    made_by = ", ".join(f"{name} {version(name)}" for name in ("torch", "torch_geometric", "torch_geometric_temporal"))
    path = Path(__file__).resolve().parents[1] / "pyg_temporal.npz"
    np.savez_compressed(path, made_by=made_by, **{key: np.asarray(value) for key, value in stored.items()})
    print(path.stat().st_size)


if __name__ == "__main__":
    main()
