"""What an event on a temporal graph costs: the network of `sparse-etrace demo events`, queues of one number.

Microseconds of an event by rule and number of nodes, in calls of 1,000 events that change the carry in place: the
median of the second half of the calls, each of other events. Beside it RTRL of all nodes, without `Events`.
"""

import json
import statistics
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from bench import arguments

import sparse_etrace as se
from sparse_etrace.demo_events import Meeting, loss_fn, meetings

RULES = {
    "D-RTRL": se.D_RTRL(),
    "ES-D-RTRL": se.ES_D_RTRL(),
    "Bridged(16)": se.Bridged(16),
    "RTRL": se.RTRL(),
    "BPTT": se.BPTT(),
}
DENSE = "RTRL of all nodes"
FEW_ONLY = ("RTRL", "BPTT", DENSE)
FEW, FULL, QUICK = 100, ((16, 32), 100_000, 1000, 60), ((4,), 300, 20, 2)


class Nodes(eqx.Module):
    """The same network, whose state are all nodes."""

    meeting: Meeting

    def __call__(self, h, x):
        pair, feature = x
        rows, out = self.meeting(h[pair], feature)
        return h.at[pair].set(rows), out


def microseconds(name, hidden, nodes, events, calls):
    model, learner = Meeting(hidden, jax.random.key(0)), se.Events(RULES.get(name, se.RTRL()), nodes)
    if name == DENSE:  # a hundred times as slow, so that fewer will do
        model, learner, events, calls = Nodes(model), se.RTRL(max_influences=10**9), 8, min(calls, 4)
    drawn = (meetings(np.random.default_rng(call), 1, events, nodes) for call in range(calls))
    carry, took = None, []
    for x, y in jax.tree.map(jnp.asarray, list(drawn)):
        if carry is None:
            carry = learner.init(model, jnp.zeros((nodes, hidden)), jax.tree.map(lambda a: a[0], x))
        begin = time.perf_counter()
        losses, grads, carry = se.online_grad(learner, loss_fn, model, carry, x, y, donate=True)
        jax.block_until_ready((losses, grads, carry))
        took.append(time.perf_counter() - begin)
    return statistics.median(took[calls // 2 :]) / events * 1e6


def main():
    args = arguments(__doc__)
    sizes, many, *rest = QUICK if args.quick else FULL
    columns = [(hidden, nodes) for hidden in sizes for nodes in (FEW, many)]
    found = {}
    print(f"{'microseconds':<18}" + "".join(f"{f'{hidden}, {nodes:,} nodes':>22}" for hidden, nodes in columns))
    for name in (*RULES, DENSE):
        asked = [(hidden, nodes) for hidden, nodes in columns if nodes == FEW or name not in FEW_ONLY]
        row = found[name] = {f"{hidden}, {nodes}": microseconds(name, hidden, nodes, *rest) for hidden, nodes in asked}
        cells = (row.get(f"{hidden}, {nodes}") for hidden, nodes in columns)
        print(f"{name:<18}" + "".join(f"{cell:22.1f}" if cell else f"{'-':>22}" for cell in cells), flush=True)
    (args.out / "events.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
