"""Each row of the "coming from" pages in numbers: ours, an independent computation, the other library where it is."""

import ast
import contextlib
import doctest
import io
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
from test_docs import SAME, pieces

import sparse_etrace as se

DOCS = Path(__file__).resolve().parents[1] / "docs"


def rows_of(page, change=None, stop=None):
    """What the code of each row gives, `{left column: [values]}`, and all names; `change` follows the first block."""
    text = (DOCS / page).read_text()
    lines, names, found = text.splitlines(), {"__name__": "page"}, {}
    for line, source, prints in pieces(text):
        if not lines[line].startswith("|"):
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(source, names)
            assert prints is None or SAME(prints, printed.getvalue(), doctest.ELLIPSIS)
            names.update(change or {})
            change = None
            continue
        left = lines[line].strip("|").split("|")[0].strip()
        found.setdefault(left, []).append(value_of(source, names))
        if stop is not None and left.startswith(stop):
            break
    return found, names


def value_of(source, names):
    """What an expression or an assignment gives."""
    last = ast.parse(source).body[-1]
    if isinstance(last, ast.Expr):
        return eval(source.strip(), names)
    exec(source, names)
    return eval(ast.unparse(last.targets[0]), names)


def edges(graph):
    conn = graph.connectivity
    return sorted(zip(conn.pre.tolist(), conn.post.tolist(), graph.weight.tolist()))


def close(ours, right):
    one, two = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(value)]) for value in (ours, right))
    assert one.shape == two.shape
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------------------------------- PyTorch Geometric

# The page's own edges, and others with loops, parallel edges, both directions, weights that cancel.
GRAPHS = [
    ([[0, 1, 2, 2], [1, 2, 0, 1]], [1.0, 2.0, 3.0, 4.0]),
    ([[0, 1], [1, 0]], [1.0, 2.0]),
    ([[0, 1, 2, 1, 0], [1, 0, 2, 1, 2]], [1.0, 2.0, 3.0, 4.0, 5.0]),
    ([[0, 0, 1, 2, 2], [1, 1, 0, 1, 1]], [1.0, -1.0, 0.5, 2.0, 0.0]),
]
UNDIRECTED = "`to_undirected(edge_index, w)`"


def dictionary(pairs, both=False):
    """Weights summed over edges, once or in both directions."""
    total = {}
    for i, j, w in pairs:
        for ends in ((i, j), (j, i)) if both else ((i, j),):
            total[ends] = total.get(ends, 0.0) + w
    return sorted((*ends, w) for ends, w in total.items())


def spread(pairs, x, nodes):
    out = np.zeros((nodes, *x.shape[1:]))
    for i, j, w in pairs:
        out[j] += w * x[i]
    return out


def graph_rows(index, weight):
    """Rows of the first table: what each should give, by loops over edges; and how to read our side."""
    pairs = [(i, j, w) for i, j, w in zip(*index, weight)]
    ones = [(i, j, 1.0) for i, j, _ in pairs]
    nodes = max(map(max, index)) + 1
    dense = np.zeros((nodes, nodes))
    for i, j, w in pairs:
        dense[i, j] += w
    loops = {i for i, j, _ in pairs if i == j}
    path = [(0, 1, 1.0), (1, 0, 1.0), (1, 2, 1.0), (2, 1, 1.0)]
    by_post = sorted(((i, j) for i, j, _ in pairs), key=lambda e: (e[1], e[0]))
    return {
        "`Data(edge_index=edge_index, edge_attr=w)`": (lambda v: edges(v[0]), sorted(pairs)),
        "`data.edge_index`": (lambda v: np.asarray(v[1]).T.tolist(), [list(e) for e in by_post]),
        "`data.num_nodes`, `data.num_edges`": (lambda v: v[0], (nodes, len(pairs))),
        "`from_networkx(G)`, `to_networkx(data)`": (
            lambda v: (edges(v[0]), sorted(v[1].edges(data="weight"))),
            (path, sorted(pairs)),
        ),
        "`from_scipy_sparse_matrix(A)`": (lambda v: edges(v[0]), sorted(pairs)),
        "`to_dense_adj(edge_index, edge_attr=w)[0]`": (lambda v: v[0], dense),
        "`remove_self_loops(edge_index)`": (lambda v: edges(v[0]), sorted(e for e in ones if e[0] != e[1])),
        "`add_remaining_self_loops(edge_index)`": (
            lambda v: edges(v[0]),
            sorted(ones + [(k, k, 1.0) for k in range(nodes) if k not in loops]),
        ),
        "`coalesce(edge_index, w)`": (lambda v: edges(v[0]), dictionary(pairs)),
        UNDIRECTED: (lambda v: edges(v[0]), dictionary(pairs, both=True)),
        "`edge_attr` of several columns": (
            lambda v: sorted(
                zip(*map(np.ndarray.tolist, map(np.asarray, ends_of(v[0]))), v[0].edge_attrs["length"].tolist())
            ),
            sorted((i, j, [w, w * w]) for i, j, w in pairs),
        ),
        "`HeteroData`, bipartite `(N, M)`": (
            lambda v: np.arange(1.0, 3) @ np.asarray(v[0].to_dense()),
            [2.0, 0.0, 1.0],
        ),
    }


def ends_of(graph):
    return graph.connectivity.pre, graph.connectivity.post


def changed(index, weight):
    return {"edge_index": np.array(index), "edge_weight": np.array(weight)}


def layer_rows(names):
    """Rows of the second table, from the page's own numbers."""
    x, pairs = np.asarray(names["x"], float), [(i, j, w) for (i, j), w in zip(zip(*GRAPHS[0][0]), GRAPHS[0][1])]
    ones = [(i, j, 1.0) for i, j, _ in pairs]
    looped = ones + [(k, k, 1.0) for k in range(3)]
    degree = np.bincount([j for _, j, _ in looped])
    normed = [(i, j, 1 / np.sqrt(degree[i] * degree[j])) for i, j, _ in looped]
    weight = np.asarray(names["layer"].features.value["weight"], float)
    by_type = [(i, j, (0.5, 3.0)[t]) for (i, j, _), t in zip(pairs, (0, 1, 0, 1))]
    into = {j: sum(np.exp(w) for _, k, w in pairs if k == j) for j in range(3)}
    attention = [np.exp(w) / into[j] for i, j, w in sorted(pairs, key=lambda e: (e[1], e[0]))]
    parts = [(0, 1), (1, 2), (3, 4), (4, 5), (5, 6)]
    both = sorted([(i, j, 1.0) for i, j in parts] + [(j, i, 1.0) for i, j in parts])
    twice = np.stack([spread(pairs, x, 3), spread(pairs, 2 * x, 3)])
    g = jnp.array([0.5, -2.0])
    return {
        "`GCNConv(16, 8)(x, edge_index)`": (lambda v: v[0], spread(normed, x @ weight, 3)),
        "`SimpleConv(aggr='add')(x, edge_index, w)`": (lambda v: v[1], spread(pairs, x, 3)),
        "`scatter(x[row], col, reduce='sum')`": (lambda v: v[0], spread(ones, x, 3)),
        "learned edge weights `nn.Parameter(torch.ones(E))`": (
            lambda v: v[0](names["x"][:, 0]),
            spread(ones, x[:, 0], 3),
        ),
        "`RGCNConv`: a weight (there a matrix) for each `edge_type`": (
            lambda v: v[1](names["x"]),
            spread(by_type, x, 3),
        ),
        "`GATConv`: attention over neighbours, `softmax(score, col)`": (lambda v: v[1], attention),
        "mini-batch of graphs, `Batch.from_data_list`": (lambda v: edges(v[0]), both),
        "a batch of signals on one graph": (lambda v: v[0], twice),
        "`model.parameters()`, `requires_grad_(False)`": (lambda v: sum(a.size for a in jax.tree.leaves(v[0])), 16 * 8),
        "`loss.backward(); torch.optim.Adam(lr=1e-3).step()`": (
            lambda v: v[0].update(g, v[0].init(g))[0],
            [-0.001 * 0.5 / (0.5 + 1e-8), 0.001 * 2 / (2 + 1e-8)],
        ),
    }


@pytest.mark.parametrize("index, weight", GRAPHS)
def test_graphs_of_pyg_in_numbers(index, weight):
    found, _ = rows_of("from-pyg.md", changed(index, weight), "`HeteroData`")
    right = graph_rows(index, weight)
    assert list(found) == list(right)
    for row, (ours, expected) in right.items():
        close(ours(found[row]), expected)


def test_layers_of_pyg_in_numbers():
    found, names = rows_of("from-pyg.md", stop="`loss.backward(")
    right = layer_rows(names)
    assert list(found) == [*graph_rows(*GRAPHS[0]), *right]
    for row, (ours, expected) in right.items():
        close(ours(found[row]), expected)


def test_undirected_of_pyg_is_fast():
    rng = np.random.default_rng(0)
    ends, weight = rng.integers(0, 100_000, (2, 100_000)), rng.normal(size=100_000)
    (row,) = [line for line in (DOCS / "from-pyg.md").read_text().splitlines() if UNDIRECTED in line]
    graph = se.from_edges(*ends, weight)
    names = {"np": np, "se": se, "graph": graph, "conn": graph.connectivity}
    both = [value_of(source, names) for source in re.findall("`([^`]+)`", row)[1:]][-1].to_scipy()
    plain = graph.to_scipy()
    assert abs(both - (plain + plain.T)).max() < 1e-5 and both.nnz > 190_000


def torch_rows(index, weight):
    """The first table by PyTorch Geometric itself."""
    torch = pytest.importorskip("torch", reason="torch_geometric is not installed: pip install torch torch_geometric")
    utils = pytest.importorskip("torch_geometric.utils", reason="pip install torch_geometric")
    from torch_geometric.data import Data
    from torch_geometric.nn import SimpleConv

    edge_index, w = torch.tensor(index), torch.tensor(weight)
    data = Data(edge_index=edge_index, edge_attr=w)
    listed = lambda e, w=None: sorted(zip(*e.tolist(), (w if w is not None else torch.ones(e.shape[1])).tolist()))
    A = utils.to_scipy_sparse_matrix(edge_index, w)
    # Through a dictionary, since networkx without parallel edges keeps the last one.
    back = sorted(utils.to_networkx(data, edge_attrs=["edge_attr"], to_multi=True).edges(data="edge_attr"))
    many = Data(edge_index=edge_index, edge_attr=torch.stack([w, w * w], 1))
    bipartite = SimpleConv(aggr="sum")(
        (torch.tensor([[1.0], [2.0]]), torch.zeros(3, 1)), torch.tensor([[0, 1], [2, 0]]), size=(2, 3)
    )
    return {
        "`Data(edge_index=edge_index, edge_attr=w)`": listed(data.edge_index, data.edge_attr),
        "`data.edge_index`": utils.sort_edge_index(edge_index, sort_by_row=False).T.tolist(),
        "`data.num_nodes`, `data.num_edges`": (data.num_nodes, data.num_edges),
        "`from_networkx(G)`, `to_networkx(data)`": (listed(utils.from_networkx(nx.path_graph(3)).edge_index), back),
        "`from_scipy_sparse_matrix(A)`": listed(*utils.from_scipy_sparse_matrix(A)),
        "`to_dense_adj(edge_index, edge_attr=w)[0]`": utils.to_dense_adj(edge_index, edge_attr=w)[0].numpy(),
        "`remove_self_loops(edge_index)`": listed(utils.remove_self_loops(edge_index)[0]),
        "`add_remaining_self_loops(edge_index)`": listed(utils.add_remaining_self_loops(edge_index)[0]),
        "`coalesce(edge_index, w)`": listed(*utils.coalesce(edge_index, w)),
        UNDIRECTED: listed(*utils.to_undirected(edge_index, w)),
        "`edge_attr` of several columns": sorted(zip(*many.edge_index.tolist(), many.edge_attr.tolist())),
        "`HeteroData`, bipartite `(N, M)`": bipartite[:, 0].numpy(),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("index, weight", GRAPHS)
def test_graphs_beside_pyg(index, weight):
    theirs, right = torch_rows(index, weight), graph_rows(index, weight)
    assert list(theirs) == list(right)
    for row, value in theirs.items():
        close(value, right[row][1])


@pytest.mark.filterwarnings("ignore")
def test_layers_beside_pyg():
    torch = pytest.importorskip("torch", reason="pip install torch torch_geometric")
    pytest.importorskip("torch_geometric", reason="pip install torch_geometric")
    from torch_geometric.data import Batch, Data
    from torch_geometric.nn import GCNConv, RGCNConv, SimpleConv
    from torch_geometric.utils import from_networkx, scatter, softmax

    _, names = rows_of("from-pyg.md")
    right = {row: expected for row, (_, expected) in layer_rows(names).items()}
    x = torch.tensor(np.asarray(names["x"]))
    edge_index, w = torch.tensor(GRAPHS[0][0]), torch.tensor(GRAPHS[0][1])
    row, col = edge_index
    gcn, rgcn = GCNConv(16, 8), RGCNConv(16, 16, 2, aggr="sum", root_weight=False, bias=False)
    simple = SimpleConv(aggr="sum")
    optimized = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([optimized], lr=1e-3)
    (optimized * torch.tensor([0.5, -2.0])).sum().backward()
    optimizer.step()
    with torch.no_grad():
        gcn.lin.weight.copy_(torch.tensor(np.asarray(names["layer"].features.value["weight"]).T))
        rgcn.weight.copy_(torch.stack([0.5 * torch.eye(16), 3.0 * torch.eye(16)]))
        order = torch.tensor([2, 0, 3, 1])  # by receiving, then sending node
        batch = Batch.from_data_list([from_networkx(nx.path_graph(k)) for k in (3, 4)])
        both = torch.stack([x, 2 * x])
        theirs = [
            gcn(x, edge_index),
            simple(x, edge_index, w),
            scatter(x[row], col, reduce="sum"),
            simple(x[:, :1], edge_index, torch.ones(4))[:, 0],
            rgcn(x, edge_index, torch.tensor([0, 1, 0, 1])),
            softmax(w, col)[order],
            sorted((i, j, 1.0) for i, j in batch.edge_index.T.tolist()),
            simple(both, edge_index, w),
            sum(p.numel() for p in GCNConv(16, 8, bias=False).parameters()),
            optimized.detach(),
        ]
    assert isinstance(batch, Data) and len(theirs) == len(right)
    for value, expected in zip(theirs, right.values()):
        close(value.numpy() if hasattr(value, "numpy") else value, expected)


# -------------------------------------------------------------------------------------------------------- Brian2, NEST


@pytest.fixture(scope="module")
def spiking():
    return rows_of("from-nest-brian2.md")


def network(names, steps):
    """The page's recurrent neurons, by a loop; reset and synapses act before the leak of the next step."""
    a = np.exp(-1 / 20)
    current = np.asarray(steps, float) @ np.asarray(names["inp"].value["weight"], float)
    W = np.zeros((50, 50))
    np.add.at(W, (names["S_i"], names["S_j"]), names["S_w"])
    v, found = np.zeros(50), []
    for i in current:
        v = a * v + (1 - a) * i
        z = (v > 1).astype(float)
        v = v + z @ W - z
        found.append(z)
    return np.array(found), current, W


def test_neurons_of_brian2_in_numbers(spiking):
    found, names = spiking
    spikes, _, _ = network(names, found["`run(100*ms)`"][0])
    np.testing.assert_array_equal(found["`run(100*ms)`"][1][1], spikes)
    assert 50 < spikes.sum() < 2500
    time, unit = np.nonzero(spikes)
    close(found["`SpikeMonitor(G).i`, `.t/ms`"][0], (unit, time))
    lif = found["`NeuronGroup(n, 'dv/dt = (I(t, i) - v)/tau : 1', threshold='v>1', reset='v-=1', method='exact')`"][0]
    assert lif.rec is None and float(lif.threshold()) == 1
    close(found["`method='exact'` for a linear leak"][0], 0.951229424500714)


BRIAN2 = [
    "`NeuronGroup(n, 'dv/dt = (I(t, i) - v)/tau : 1', threshold='v>1', reset='v-=1', method='exact')`",
    "`Synapses(G, G, 'w : 1', on_pre='v_post += w')`, `S.connect(i=S_i, j=S_j)`, `S.w = S_w`",
    "`S.connect(p=0.1)`",
    "`S.i`, `S.j`, `S.w`",
    "`S.w = '0.1*randn()'`",
    "`multisynaptic_index`",
    "`method='exact'` for a linear leak",
    "`run(100*ms)`",
    "`SpikeMonitor(G).i`, `.t/ms`",
]


def test_synapses_of_brian2_in_numbers(spiking):
    found, names = spiking
    triples = sorted(zip(names["S_i"].tolist(), names["S_j"].tolist(), np.float32(names["S_w"]).tolist()))
    assert edges(found[BRIAN2[1]][0]) == triples
    assert sorted(zip(*(np.asarray(part).tolist() for part in found["`S.i`, `S.j`, `S.w`"][0]))) == triples
    assert abs(found["`S.connect(p=0.1)`"][0].connectivity.num_synapses - 250) < 5 * (2500 * 0.1 * 0.9) ** 0.5
    assert abs(np.std(found["`S.w = '0.1*randn()'`"][0]) - 0.1) < 5 * 0.1 / (2 * 400) ** 0.5
    assert edges(found["`multisynaptic_index`"][0]) == [(0, 1, 1.0)] * 2


@pytest.mark.filterwarnings("ignore")
def test_neurons_and_synapses_beside_brian2(spiking):
    b = pytest.importorskip("brian2", reason="pip install brian2 'numpy<2.4'")
    names = spiking[1]
    xs = np.asarray(spiking[0]["`run(100*ms)`"][0])
    spikes, current, W = network(names, xs)
    b.prefs.codegen.target = "numpy"
    b.defaultclock.dt = 1 * b.ms
    space = {"I": b.TimedArray(current, dt=1 * b.ms), "tau": 20 * b.ms}
    G = b.NeuronGroup(
        50, "dv/dt = (I(t, i) - v)/tau : 1", threshold="v>1", reset="v-=1", method="exact", namespace=space
    )
    S = b.Synapses(G, G, "w : 1", on_pre="v_post += w", multisynaptic_index="k", namespace={})
    S.connect(i=names["S_i"], j=names["S_j"])
    S.w = names["S_w"]
    other = b.Synapses(G, G, "w : 1", namespace={})
    other.connect(p=0.1)
    other.w = "0.1*randn()"
    monitor = b.SpikeMonitor(G)
    b.Network(G, S, monitor).run(100 * b.ms)
    theirs = np.zeros((100, 50))
    theirs[np.round(np.asarray(monitor.t / b.ms)).astype(int), np.asarray(monitor.i)] = 1
    np.testing.assert_array_equal(theirs, spikes)
    dense = np.zeros((50, 50))
    np.add.at(dense, (np.asarray(S.i), np.asarray(S.j)), np.asarray(S.w))
    np.testing.assert_allclose(dense, W)
    assert abs(len(other) - 250) < 80 and abs(np.std(np.asarray(other.w)) - 0.1) < 0.03


GENERATORS = {"spike": "'spike_times': times", "poisson": "'rate': 100.0"}


def eprop_neurons(w, xs, beta):
    """Spikes by the published equations: the reset at the next step, after the leak; adaptation counts spikes."""
    a, rho, theta = np.exp(-1 / 20), np.exp(-1 / 200), 0.6
    v, z, count, found = np.zeros(50), np.zeros(50), np.zeros(50), []
    for x in xs:
        count = rho * count + z
        v = a * v + w.T @ x - theta * z
        z = (v >= theta + beta * count).astype(float)
        found.append(z)
    return np.array(found)


def run(cell, xs):
    return np.asarray(jax.lax.scan(lambda s, x: cell(s, x), cell.init_state(), jnp.asarray(xs, jnp.float32))[1])


def test_neurons_of_nest_in_numbers(spiking):
    found, names = spiking
    a = np.exp(-1 / 20)
    w = (1 - a) * np.asarray(names["inp"].value["weight"], float)
    xs = np.random.default_rng(1).random((150, 3))
    plain = found["`eprop_iaf_bsshslm_2020`, `{'V_th': V_th, 't_ref': 0.0}`"][0]
    adaptive = found["`eprop_iaf_adapt_bsshslm_2020`, `adapt_beta`, `adapt_tau`"][0]
    by_nest, adapted = eprop_neurons(w, xs, 0.0), eprop_neurons(w, xs, 0.17)
    assert 200 < adapted.sum() < by_nest.sum() - 100
    np.testing.assert_array_equal(run(plain, xs), by_nest)
    np.testing.assert_array_equal(run(adaptive, xs), adapted)
    np.testing.assert_array_equal(found["`nest.Simulate(1000.0)`"][0], eprop_neurons(w, np.ones((1000, 3)), 0.17))
    # What the conversion is not: the numbers of NEST as they are.
    wrong = se.cells.ALIF(50, names["inp"], decay=a, threshold=0.6, adaptation=0.17, adaptation_decay=names["rho"])
    assert (run(wrong, xs) != adapted).mean() > 0.02


def test_synapses_of_nest_in_numbers(spiking):
    found, names = spiking
    W, x = names["W"], np.random.default_rng(0).random(50)
    close(found["`nest.Connect(A, B, 'all_to_all', {'weight': W})`"][0](jnp.asarray(x, jnp.float32)), W @ x)
    exported = found["`'pairwise_bernoulli'`, its weights exported as W"][0]
    close(exported.to_dense().T, W)
    triples = sorted(zip(names["S_i"].tolist(), names["S_j"].tolist(), np.float32(names["S_w"]).tolist()))
    assert edges(found["`nest.GetConnections().get(['source', 'target', 'weight'])`"][0]) == triples
    ends = [(i, j) for i, j, _ in edges(found["`allow_autapses: False`"][0])]
    assert ends == sorted((i, j) for i, j, _ in triples if i != j) and len(ends) < 400
    op = found["excitatory and inhibitory populations"][0]
    signed = np.where(np.arange(50) < 40, 1, -1) * np.abs(W)
    param = se.ETraceParam({"weight": exported.weight}, op)
    close(param(jnp.asarray(x, jnp.float32)), signed @ x)
    train, drawn = (found[f"`nest.Create('{name}_generator', {{{rest}}})`"][0] for name, rest in GENERATORS.items())
    np.testing.assert_array_equal(np.nonzero(train)[0], [2, 6, 19])
    assert drawn.shape == (1000, 50) and abs(drawn.mean() - 0.1) < 5 * (0.1 * 0.9 / 50_000) ** 0.5


def test_eprop_of_nest_in_numbers(spiking):
    """One step from rest: L_t psi (1 - a) x, with L_t = B d, W_out d, and what kappa and rates add."""
    found, names = spiking
    net, a = names["net"], np.exp(-1 / 20)
    x, y = jnp.full((1, 3), 0.4), jnp.full((1, 1), 0.3)
    u = (1 - a) * np.asarray(net.cell.inp(x[0]), float)
    psi, z = 0.3 * np.maximum(0, 1 - np.abs(u - 1)), (u >= 1).astype(float)
    readout = np.asarray(net.readout.value["weight"], float)
    d = float(z @ readout[:, 0]) - 0.3
    e = np.outer(np.asarray(x[0]), (1 - a) * psi)
    assert (psi > 0).sum() > 5
    loss = lambda out, y: 0.5 * jnp.sum((out - y) ** 2)

    def gradient(rule):
        carry = rule.init(net, names["state"], x[0])
        return se.online_grad(rule, loss, net, carry, x, y)[1].cell.inp.value["weight"]

    feedback = np.asarray(names["B"], float)[0]
    names["state"] = (jnp.zeros(50),) * 3
    row = "`eprop_learning_signal_connection_bsshslm_2020`, weights `B`"
    close(gradient(found[row][0]), d * feedback * e)
    close(gradient(found["symmetric: feedback copied from the readout"][0]), d * readout[:, 0] * e)
    close(gradient(found["`tau_m_readout`"][0]), (1 - np.exp(-1 / 30)) * d * feedback * e)
    rate = found["`c_reg`, `f_target` (spikes/s)"][0]
    assert (rate.rate_strength, rate.rate_target) == (300.0, 0.01)
    v, theta = np.linspace(-1, 2.5, 8), 0.6
    slopes = {
        "`piecewise_linear`, `beta: 1 / V_th`, `gamma: 0.3 / V_th`": 0.3
        / theta
        * np.maximum(0, 1 - np.abs(v - theta) / theta),
        "`fast_sigmoid_derivative`, `beta: 10 / V_th`, `gamma: 1 / V_th`": (1 + 10 / theta * np.abs(v - theta)) ** -2.0
        / theta,
        "`arctan`, `beta: 1 / V_th`, `gamma: pi / V_th`": 1 / theta / (1 + (np.pi / theta * (v - theta)) ** 2),
    }
    for row, right in slopes.items():
        close(jax.vmap(jax.grad(lambda v, spike=found[row][0]: spike(v / theta - 1)))(jnp.asarray(v)), right)
    _, outs = jax.lax.scan(lambda s, x: net(s, x), names["state"], names["xs"])
    close(found["`eprop_update_interval`"][1][0], np.mean(np.asarray(outs) ** 2, 1))
    window = found["`eprop_learning_window`"][0]
    assert (window(jnp.array([2.0]), (0.5, 0.0)), window(jnp.array([2.0]), (0.5, 1.0))) == (0.0, 2.25)
    # The rest names functions, and no numbers.
    rest = {"`optimizer: {'type': 'adam', 'eta': 1e-4}`", "other rules: none"}
    # Those of the models are in test_brian2 and test_nest.
    assert len(found) == len(BRIAN2) + 15 + 17 + 12 + 6 + len(slopes) + len(rest)


# ----------------------------------------------------------------------------------------------- brainscale, braintrace

# Rows that name a function or a setting, and no numbers.
NO_NUMBERS = {
    "`ETraceGrad.full`, `.approx`, `.adaptive`",
    "subclass `ETraceOp`: `xw_to_y`, `yw_to_w`",
    "`brainstate.random.seed(0)`",
    "`brainstate.transform.jit`",
    "`chunk_size=k` with `MultiStepData`",
    "`braintrace.SnAp`, `UORO`, `ThreeFactor`, `EProp`, `OSTLRecurrent`",
    "an optimizer of braintools, a loop of one's own",
    "`verbose=1`, the compiler's report",
}
CELLS = "`braintrace.nn.GRUCell`, `MGUCell`, `brainstate.nn.init_all_states`"
LEARNING = [
    "`braintrace.compile(model, braintrace.D_RTRL, x0, batch_size=4)`",
    "`learner(x)`: one step",
    "`learner.etrace_grad(xs, ys, step_fn=f, reduction='sum')`",
    "`reduction='mean'`, its default",
    "`braintrace.pp_prop`, `ES_D_RTRL`, `decay_or_rank=0.9`",
]
X, STATE = np.random.default_rng(3).normal(size=(5, 3)), np.random.default_rng(8).normal(size=4)
GATES = np.random.default_rng(9).normal(size=(3, 7, 4))  # of input and state together, as there
ROWS, TWO = np.random.default_rng(4).normal(size=(5, 8)), np.random.default_rng(5).normal(size=(8, 2))
IMAGE, WINDOW = np.random.default_rng(6).normal(size=(32, 3)), np.random.default_rng(7).normal(size=(5, 3, 4))


@pytest.fixture(scope="module")
def braintrace_page():
    return rows_of("from-braintrace.md")


def single(a):
    return jnp.asarray(a, jnp.float32)


def apply(op, x, **w):
    return se.ETraceParam({k: single(v) for k, v in w.items()}, op)(single(x))


def op_rows(names):
    """How to read our side, and what each row should give."""
    (w, b, mask), csr = (np.asarray(names[k], float) for k in ("w", "b", "mask")), names["csr"]
    wide = np.zeros((36, 3))
    wide[2:-2] = IMAGE
    convolved = sum(wide[k : k + 32] @ WINDOW[k] for k in range(5))
    return {
        "`ETraceParam({'weight': w, 'bias': b}, MatMulOp())`": (lambda v: v[0](single(X)), X @ w + b),
        "`MatMulOp(weight_mask=mask, weight_fn=jnp.abs)`": (lambda v: apply(v[0], X, weight=w), X @ (np.abs(w) * mask)),
        "`ConvOp(xinfo, window_strides, padding)`": (lambda v: apply(v[0], IMAGE, weight=WINDOW), convolved),
        "`SpMatMulOp(sparse_mat)`, a sparse matrix of brainunit": (
            lambda v: apply(v[0], ROWS, weight=csr.data),
            ROWS @ csr.toarray(),
        ),
        "`ETraceParam({'weight': data}, SpMatMulOp(m))`": (lambda v: v[0](single(ROWS)), ROWS @ csr.toarray()),
        "`LoraOp(alpha)` with `{'B': ..., 'A': ...}`": (
            lambda v: apply(v[0].op, ROWS, B=TWO, A=TWO.T),
            ROWS @ TWO @ TWO.T,
        ),
        "`ElemWiseParam(w, op)`": (lambda v: v[0](), np.full(8, 0.5)),
        "`NonTempParam(w, op)`": (lambda v: v[0](single(ROWS)), ROWS.sum(1)),
        "`param.execute(x)`": (lambda v: (v[0], v[1]), (np.ones((5, 3)) @ w + b, np.ones(3) @ w + b)),
    }


def gated(kind):
    """Weights for a cell here, and the new state of a GRU (0) or an MGU (1) by braintrace's equations."""
    sigmoid = lambda v: 1 / (1 + np.exp(-v))
    both = np.concatenate([X[0], STATE])
    if kind:
        order, keep = GATES[:2], sigmoid(both @ GATES[0])
        reset, update = keep, keep
    else:
        order, reset, update = GATES, sigmoid(both @ GATES[0]), sigmoid(both @ GATES[1])
    candidate = np.tanh(np.concatenate([X[0], reset * STATE]) @ order[-1])
    return [*(g[:3] for g in order), *(g[3:] for g in order)], (1 - update) * STATE + update * candidate


def by_hand(inp, rec, out, xs, decay=None):
    """Losses, outputs and gradients of the page's network: what recurrence reads is a constant, so a step's own."""
    h, losses, outs = np.zeros((4, 8)), [], []
    grads = {"inp": np.zeros_like(inp), "rec": np.zeros_like(rec), "out": np.zeros_like(out)}
    filtered = {"inp": np.zeros((4, 3)), "rec": np.zeros((4, 8))}
    for t, x in enumerate(xs):
        pre = {"inp": x, "rec": h}
        h = np.tanh(x @ inp + h @ rec)
        o = h @ out
        d = 2 * o / o.size
        n = d @ out.T * (1 - h * h)
        for k in filtered:
            filtered[k] = pre[k] if decay is None else decay * filtered[k] + pre[k]
            grads[k] += filtered[k].T @ n * (1.0 if decay is None else (1 - decay) / (1 - decay ** (t + 1)))
        grads["out"] += h.T @ d
        losses.append(np.mean(o**2))
        outs.append(o)
    return np.array(losses), outs, grads


def parts_of(model):
    return {k: getattr(model, k).value["weight"] for k in ("inp", "rec", "out")}


def test_ops_of_braintrace_in_numbers(braintrace_page):
    found, names = braintrace_page
    right = op_rows(names)
    for row, (ours, expected) in right.items():
        close(ours(found[row]), expected)
    model = [
        ("`brainstate.HiddenState(jnp.zeros(n))`", lambda v: v[0].shape, (4, 8)),
        (
            "`brainstate.ParamState(w)` in a `braintrace.matmul`",
            lambda v: v[0](single(X)),
            X @ np.asarray(names["w"], float),
        ),
        ("`model.states(brainstate.ParamState)`", lambda v: sum(a.size for a in jax.tree.leaves(v[0])), 96),
        ("a model state that is not trained", lambda v: v[0](), 0.9),
    ]
    for row, ours, expected in model:
        close(ours(found[row]), expected)
    gru, mgu, _ = found[CELLS][0]
    for cell, (weights, h) in ((gru, gated(0)), (mgu, gated(1))):
        made = cell(4, *(se.ETraceParam({"weight": single(part)}, se.MatMulOp()) for part in weights))
        close(made(single(STATE), single(X[0]))[1], h)
    assert set(found) == {*right, *(row for row, *_ in model), CELLS, *LEARNING, *NO_NUMBERS}


def test_learning_of_braintrace_in_numbers(braintrace_page):
    found, names = braintrace_page
    xs = np.asarray(names["xs"], float)
    weights = {k: np.asarray(v, float) for k, v in parts_of(names["model"]).items()}
    losses, outs, grads = by_hand(*weights.values(), xs)
    close(found["`learner(x)`: one step"][0][1], outs[0])
    learner, model, loss = names["learner"], names["model"], names["step_loss"]
    carry = learner.init(model, jnp.zeros((4, 8)), names["xs"][0])
    ours = se.online_grad(learner, loss, model, carry, names["xs"], names["ys"])
    close(ours[0], losses)
    close(parts_of(ours[1]), grads)
    mean, summed = found["`reduction='mean'`, its default"][0], found[LEARNING[2]][0][1]
    close(jax.tree.map(lambda g: 10 * g, parts_of(mean)), parts_of(summed))
    rule = found[LEARNING[4]][0]
    carry = rule.init(model, jnp.zeros((4, 8)), names["xs"][0])
    # No memory but through an op, so that there is nothing to filter; braintrace filters its inputs, see the page.
    close(parts_of(se.online_grad(rule, loss, model, carry, names["xs"], names["ys"])[1]), grads)


@pytest.mark.filterwarnings("ignore")
def test_ops_and_learning_beside_braintrace(braintrace_page):
    bt = pytest.importorskip("braintrace", reason="pip install braintrace==0.2.6 brainevent==0.2.1")
    import brainstate

    names = braintrace_page[1]
    w, b, mask = (names[k] for k in ("w", "b", "mask"))
    right = {row: value for row, (_, value) in op_rows(names).items()}
    xinfo = jax.ShapeDtypeStruct((32, 3), jnp.float32)
    theirs = {
        "`ETraceParam({'weight': w, 'bias': b}, MatMulOp())`": bt.ETraceParam({"weight": w, "bias": b}, bt.MatMulOp()),
        "`MatMulOp(weight_mask=mask, weight_fn=jnp.abs)`": bt.ETraceParam(
            {"weight": w}, bt.MatMulOp(weight_mask=mask, weight_fn=jnp.abs)
        ),
        "`LoraOp(alpha)` with `{'B': ..., 'A': ...}`": bt.ETraceParam(
            {"B": single(TWO), "A": single(TWO.T)}, bt.LoraOp(alpha=1.0)
        ),
        "`NonTempParam(w, op)`": bt.NonTempParam({"weight": jnp.ones((8, 1))}, bt.MatMulOp()),
    }
    assert xinfo.shape == IMAGE.shape
    for row, param in theirs.items():
        x = X if "MatMulOp" in row else ROWS
        close(param.execute(single(x)), right[row])
    close(bt.ElemWiseParam(jnp.zeros(8), jax.nn.sigmoid).execute(), right["`ElemWiseParam(w, op)`"])

    for kind, cell in enumerate((bt.nn.GRUCell(3, 4), bt.nn.MGUCell(3, 4))):
        brainstate.nn.init_all_states(cell)
        for name, gate in zip(("Wr", "Wz", "Wh") if kind == 0 else ("Wf", "Wh"), GATES):
            getattr(cell, name).weight.value = {"weight": single(gate), "bias": jnp.zeros(4)}
        cell.h.value = single(STATE)
        close(cell(single(X[0])), gated(kind)[1])

    class Net(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = bt.nn.ValinaRNNCell(3, 8, activation="tanh")
            self.out = bt.nn.Linear(8, 1)

        def update(self, x):
            return self.out(self.rnn(x))

    xs, ys = names["xs"], names["ys"]
    weights = {k: np.asarray(v, float) for k, v in parts_of(names["model"]).items()}
    for rule, decay in (("D_RTRL", None), ("pp_prop", 0.9)):
        net = Net()
        brainstate.nn.init_all_states(net, 4)
        net.rnn.W.weight.value = {"weight": single(np.r_[weights["inp"], weights["rec"]]), "bias": jnp.zeros(8)}
        net.out.weight.value = {"weight": single(weights["out"]), "bias": jnp.zeros(1)}
        more = {} if decay is None else {"decay_or_rank": decay}
        learner = bt.compile(net, rule, xs[0], batch_size=4, **more)
        loss = lambda x, y, learner=learner: jnp.mean((learner(x) - y) ** 2)
        grads = learner.etrace_grad(xs, ys, step_fn=loss, reduction="sum")
        _, _, expected = by_hand(*weights.values(), np.asarray(xs, float), decay)
        close(grads["rnn", "W", "weight"]["weight"], np.r_[expected["inp"], expected["rec"]])
        # As the page says; here it is exact.
        assert np.abs(grads["out", "weight"]["weight"]).max() == 0 < np.abs(expected["out"]).max()
