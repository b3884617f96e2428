"""Same inputs, same machine: same bits, whatever the number of threads.

Dense products are XLA's own, whose order of summation depends on the threads on some processors, so there are none.
"""

import os
import subprocess
import sys

import pytest
from quick import plain_environment

PROGRAM = """
import hashlib, os, sys
os.sched_setaffinity(0, set(list(os.sched_getaffinity(0))[: int(sys.argv[1])]))
import jax, jax.numpy as jnp, numpy as np, sparse_etrace as se

rng = np.random.default_rng(0)
pre, post = rng.integers(0, 3000, (2, 60_000))
conn = se.Connectivity.from_edges(pre, post, shape=(3000, 3000))
outside = se.Connectivity.from_edges(rng.integers(0, 200, 9000), rng.integers(0, 3000, 9000), shape=(200, 3000))
inp = se.ETraceParam({"weight": jnp.asarray(rng.normal(size=9000), jnp.float32)}, se.SpMatMulOp(outside))
rec = se.ETraceParam({"weight": jnp.asarray(rng.normal(size=60_000) / 20, jnp.float32)}, se.SpMatMulOp(conn))
model = se.cells.LeakyRate(3000, inp, rec)
xs = jnp.asarray(rng.normal(size=(6, 4, 200)), jnp.float32)
bits = hashlib.sha256()
for learner in (se.D_RTRL(), se.ES_D_RTRL()):
    carry = learner.init(model, model.init_state(4), xs[0])
    result = se.online_grad(learner, lambda out, _: jnp.sum(out**2), model, carry, xs, None, chunk=4)
    for leaf in jax.tree.leaves(result):
        bits.update(np.asarray(leaf).tobytes())
print(bits.hexdigest())
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
def test_bits_do_not_depend_on_the_number_of_threads():
    environment = plain_environment() | {"JAX_PLATFORMS": "cpu"}
    options = {"env": environment, "capture_output": True, "text": True, "check": True}
    runs = [subprocess.run([sys.executable, "-c", PROGRAM, count], **options).stdout for count in ("1", "2")]
    assert len(runs[0].strip()) == 64
    assert runs[0] == runs[1]
