"""A network of networkx, there and back.

You learn how a labelled, weighted, undirected graph becomes a recurrent network, how both directions of an edge share
one weight, how to train on a stream of observations, and how to hand the learned weights back to networkx.

The graph holds the characters of "Les Misérables"; an edge counts the chapters in which two of them appear together.
Gossip reaches a few characters at a time, spreads along the edges, and is forgotten. The network knows who is
acquainted with whom but not how well: it sees noisy gossip levels alone, and must find the strength of each tie.
"""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import optax

import sparse_etrace as se

STEPS, BATCH, NOISE = 48, 16, 0.05
UPDATES = 30 if "--short" in sys.argv else 200
TARGET = 0.8 if "--short" in sys.argv else 0.97

book = nx.les_miserables_graph()
nx.set_node_attributes(book, dict(book.degree), "acquaintances")

# Labels, attributes and weights come along. Synapses are directed, so an undirected edge becomes two; a DiGraph would
# be taken as it is.
graph = se.scale_spectral_radius(se.from_networkx(book, weight="weight"), 1.0)
conn, units = graph.connectivity, len(graph.nodes)
print(f"{book.number_of_edges()} edges between {units} characters become {conn.num_synapses} synapses")
print(f"Valjean is node {graph.index_of('Valjean')}, with attributes {list(graph.node_attrs)}")

# One number for each edge: the entry of `weight` that a synapse uses is the same in both directions.
ends = np.sort([conn.pre, conn.post], axis=0)
edges, edge_of = np.unique(ends, axis=1, return_inverse=True)
edge_of = edge_of.ravel()


def gossip(weight, tie=None):
    """Leaky units on the graph: `h <- 0.7 h + 0.3 tanh(x + W h)`."""
    heard = se.Connectivity.from_edges(range(units), range(units), shape=(units, units))
    inp = se.ETraceParam({"weight": jnp.ones(units)}, se.SpMatMulOp(heard))
    return se.cells.LeakyRate(units, inp, se.ETraceParam({"weight": weight}, se.SpMatMulOp(graph, tie=tie)), decay=0.7)


town = gossip(graph.weight)
guess = 0.1 * jax.random.uniform(jax.random.key(0), (edges.shape[1],))
model = gossip(guess, tie=edge_of)


@jax.jit
def week(key):
    """News from outside, and the gossip levels that follow, with noise: time first, then the batch, then characters."""
    for_news, for_who, for_noise = jax.random.split(key, 3)
    shape = (STEPS, BATCH, units)
    news = 2 * jax.random.normal(for_news, shape) * jax.random.bernoulli(for_who, 0.1, shape)
    _, levels = jax.lax.scan(lambda h, x: town(h, x), town.init_state(BATCH), news)
    return news, levels + NOISE * jax.random.normal(for_noise, shape)


def loss_fn(out, y):
    return jnp.mean((out - y) ** 2)


# What is not trained gets no trace: here everything but the ties.
nothing = jax.tree.map(lambda _: False, model)
learner = se.D_RTRL(train=eqx.tree_at(lambda m: m.rec, nothing, replace=se.trainable(model.rec)))
weeks = (week(key) for key in jax.random.split(jax.random.key(1), UPDATES))
result = se.fit(learner, loss_fn, optax.adam(0.01), model, weeks, state=model.init_state(BATCH), progress=False)

# Back to networkx: a DiGraph with the same labels, whose weights go beside the counts of the book.
strength = result.model.rec.value["weight"][edge_of]
learned = graph.to_networkx(weight=strength)
nx.set_edge_attributes(book, {(a, b): learned.edges[a, b]["weight"] for a, b in book.edges}, "learned")
print("the strongest ties found, and the chapters that the two share:")
for a, b, edge in sorted(book.edges(data=True), key=lambda row: -row[2]["learned"])[:3]:
    print(f"  {a} - {b}: {edge['learned']:.2f}, {edge['weight']} chapters")


def correlation(weight):
    return float(np.corrcoef(weight, graph.weight)[0, 1])


before, after = correlation(guess[edge_of]), correlation(strength)
print(f"correlation of ties with the book: {before:.3f} before, {after:.3f} after {UPDATES} updates")
assert after > TARGET, f"expected a correlation above {TARGET}, got {after:.3f}"
