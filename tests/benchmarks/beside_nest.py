"""Evidence accumulation by e-prop in the NEST simulator and here, from the same weights and inputs: losses and weights.

For an environment that has `nest-simulator` beside this library. The network is that of `tests/test_evidence.py` with
one recurrent synapse in ten.
"""

import json
import sys
from pathlib import Path

import jax
import nest
import numpy as np
from bench import arguments

sys.path.insert(0, str(Path(__file__).parents[1]))
import test_evidence as task

SHARE, BATCH = 0.1, 2
# Steps from a generator's spike to the error of a readout, and those in which all synapses are brought up to date.
OFFSET, LAST = 4, 3
SYNAPSE = {"synapse_model": "eprop_synapse_bsshslm_2020", "delay": 1.0, "tau_m_readout": 20.0}
OPTIMIZER = {
    "type": "adam",
    "beta_1": 0.9,
    "beta_2": 0.999,
    "epsilon": 1e-8,
    "eta": 5e-3,
    "Wmin": -100.0,
    "Wmax": 100.0,
}


def neurons(count, **adaptive):
    """Units with a threshold of their own, or those that adapt."""
    unit = {"C_m": 1.0, "E_L": 0.0, "I_e": 0.0, "V_m": 0.0, "tau_m": 20.0, "t_ref": 5.0, "V_th": task.THETA}
    unit |= {"c_reg": 300.0, "f_target": 10.0, "regular_spike_arrival": True}
    unit |= {"flush_event_send_interval": float(task.STEPS), "surrogate_gradient_function": "piecewise_linear"}
    unit |= {"surrogate_gradient_height": 0.3 / task.THETA, "surrogate_gradient_width": task.THETA}
    return nest.Create(f"eprop_iaf{'_adapt' * bool(adaptive)}_bsshslm_2020", count, unit | adaptive)


def connect(pre, post, weight):
    """Trained synapses where `weight`, `(pre, post)`, is not nan."""
    i, j = np.nonzero(~np.isnan(weight))
    spec = SYNAPSE | {"weight": weight[i, j], "delay": np.ones(len(i))}
    nest.Connect(np.array(pre.tolist())[i], np.array(post.tolist())[j], "one_to_one", spec)


def weights(pre, post):
    """`(pre, post)`, nan where there is no synapse."""
    found = nest.GetConnections(pre, post, "eprop_synapse_bsshslm_2020").get(["source", "target", "weight"])
    out = np.full((len(pre), len(post)), np.nan)
    out[np.array(found["source"]) - min(pre.tolist()), np.array(found["target"]) - min(post.tolist())] = found["weight"]
    return out


def by_nest(weight, feedback, iterations):
    """Losses, and the weights at the end."""
    nest.ResetKernel()
    nest.verbosity = nest.VerbosityLevel.FATAL
    nest.set(resolution=1.0, total_num_virtual_procs=1, eprop_reset_neurons_on_update=True)
    nest.set(eprop_learning_window=float(task.LEARNING), eprop_update_interval=float(task.STEPS))
    source, inputs = nest.Create("spike_generator", task.INPUTS), nest.Create("parrot_neuron", task.INPUTS)
    half = task.UNITS // 2
    units = neurons(half) + neurons(half, adapt_tau=2000.0, adaptation=0.0, adapt_beta=task.BETA * (1 - task.RHO))
    readout = {"C_m": 1.0, "E_L": 0.0, "I_e": 0.0, "V_m": 0.0, "tau_m": 20.0, "loss": "cross_entropy"}
    outs = nest.Create("eprop_readout_bsshslm_2020", 2, readout | {"regular_spike_arrival": False})
    wanted, last = nest.Create("step_rate_generator", 2), nest.Create("spike_generator", 1)
    meter = nest.Create("multimeter", {"interval": 1.0, "start": float(OFFSET), "record_from": ["readout_signal"]})
    options = {"optimizer": OPTIMIZER | {"batch_size": BATCH}, "average_gradient": True}
    nest.SetDefaults("eprop_synapse_bsshslm_2020", options)
    nest.Connect(source, inputs, "one_to_one", {"delay": 1.0})
    connect(inputs, units, weight["inp"])
    connect(units, units, weight["rec"])
    connect(units, outs, weight["out"])
    back = {"synapse_model": "eprop_learning_signal_connection_bsshslm_2020", "delay": 1.0, "weight": feedback.T}
    nest.Connect(outs, units, "all_to_all", back)
    rate = {"synapse_model": "rate_connection_delayed", "delay": 1.0}
    nest.Connect(wanted, outs, "one_to_one", rate | {"receptor_type": 2})
    nest.Connect(
        outs, outs, {"rule": "all_to_all", "allow_autapses": False}, rate | {"receptor_type": 1, "weight": 1.0}
    )
    nest.Connect(last, inputs + units, "all_to_all", {"weight": 1000.0})
    nest.Connect(meter, outs)
    rng, length, classes = np.random.RandomState(1), task.STEPS * BATCH, []
    task.make(rng)
    for n in range(iterations):
        x, wish = task.presentations(rng, BATCH)
        x = np.asarray(x, bool).swapaxes(0, 1).reshape(length, task.INPUTS)
        times = 1.0 + n * length + np.arange(length)
        source.set([{"spike_times": times[x[:, i]]} for i in range(task.INPUTS)])
        begins = 1.0 * task.STEPS * np.arange(BATCH) + n * length + OFFSET
        values = np.eye(2)[np.asarray(wish)]
        wanted.set([{"amplitude_times": begins, "amplitude_values": values[:, i]} for i in range(2)])
        classes.append(np.asarray(wish))
        nest.Simulate(length)
    nest.Simulate(OFFSET + 1)
    last.set(spike_times=[iterations * length + OFFSET + 2.0])
    nest.Simulate(LAST)
    found = meter.get("events")
    signal = np.array([found["readout_signal"][found["senders"] == i] for i in outs.tolist()])
    signal = signal[:, : iterations * length].reshape(2, iterations, BATCH, task.STEPS)[..., -task.LEARNING :]
    chosen = [[signal[c, n, b] for b, c in enumerate(of)] for n, of in enumerate(classes)]
    losses = -np.log(chosen).mean(axis=(1, 2))
    return losses, {"inp": weights(inputs, units), "rec": weights(units, units), "out": weights(units, outs)}


def matrices(model):
    """Weights `(pre, post)`, nan where there is no synapse."""
    conn, rec = model.cell.rec.op.connectivity, np.full((task.UNITS, task.UNITS), np.nan)
    rec[conn.pre, conn.post] = model.cell.rec.value["weight"]
    of = lambda param: np.asarray(param.value["weight"])
    return {"inp": of(model.cell.inp), "rec": rec, "out": of(model.out)}


def main():
    args = arguments(__doc__)
    iterations = 2 if args.quick else 10
    keep = np.random.default_rng(0).random((task.UNITS, task.UNITS)) < SHARE
    np.fill_diagonal(keep, False)
    with jax.enable_x64(True):
        ours, before, after = task.train(BATCH, iterations, keep)
        before, after = matrices(before), matrices(after)
        losses, theirs = by_nest(before, np.asarray(task.make(np.random.RandomState(1))[1]), iterations)
    found = {"losses": list(map(float, losses)), "ours": ours, "difference of weight changes": {}}
    print(f"largest difference of {iterations} losses: {np.max(np.abs(losses - ours)):.1e}")
    for name, start in before.items():
        move = np.nanmax(np.abs(theirs[name] - start))
        found["difference of weight changes"][name] = worst = float(
            np.nanmax(np.abs(theirs[name] - after[name])) / move
        )
        print(f"{name}: weights change by up to {move:.3f}; largest difference of a change {worst:.1e} of that")
    (args.out / "beside_nest.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
