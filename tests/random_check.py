"""Random models under the learners of the library, beside the gradients of `random_oracle`."""

import dataclasses
import re
import warnings
from typing import Any, NamedTuple

import jax
import numpy as np
import random_models as rm
import random_oracle as ro

import sparse_etrace as se

DECAY, TOLERANCE = 0.8, 1e-9
LEARNERS = {
    "D_RTRL": se.D_RTRL(),
    "ES_D_RTRL": se.ES_D_RTRL(decay=DECAY),
    "RTRL": se.RTRL(),
    "SnAp": se.SnAp(n=None),
    **{f"SnAp({n})": se.SnAp(n=n) for n in (1, 2, 3)},
}

# What the library refuses, in its words, and why that is fair. SnAp keeps influences for each batch element and pair of
# units; RTRL takes all of these models.
FAIR = {
    "delay line": r"^state: .*'line'.* influence each other without an op between, so their units have to match",
    "own op": r"^op: Scale does not say which unit each weight leads from and to",
    "batch axes": r"^model: the ops called at .* have batch axes .* Influences are kept for each batch element",
    "state layout": r"^state: .* has the batch axes .* elsewhere than in front",
    "several units": r"^model: the (hidden state|output) .* acts on several units of ",
    "batch elements": r"^model: the (hidden state|output) .* acts on .* across batch elements \(",
}
EVERY_RULE = ("delay line",)


def reason(refused: str, name: str) -> str | None:
    """Why a refusal is fair, or None."""
    known = FAIR if name.startswith("SnAp") else {k: FAIR[k] for k in EVERY_RULE if name != "RTRL"}
    return next((why for why, words in known.items() if re.search(words, refused)), None)


class Case(NamedTuple):
    drawing: rm.Drawing
    layout: ro.Layout
    found: ro.Structure
    xs: np.ndarray
    targets: list[list[np.ndarray]]
    steps: list[ro.Step]
    generic: list[ro.Step]


def case(seed) -> Case:
    drawing = rm.draw(seed)
    rng = np.random.default_rng([seed, 12])
    xs = rng.normal(size=(rm.STEPS, *drawing.batch, *drawing.space, 2))
    layout = ro.Layout(drawing, xs[0])
    state, steps = drawing.state, []
    for x in xs:
        steps.append(ro.linearise(layout, state, x))
        state = steps[-1].state
    targets = [[rng.normal(size=o.shape) for o in s.out_values] for s in steps]
    generic = [ro.linearise(layout, drawing.state, xs[0], rng) for _ in range(len(layout.floating) + 2)]
    return Case(drawing, layout, ro.structure(layout, generic[0]), xs, targets, steps, generic)


def expected(c: Case, name: str, steps=None):
    """Losses and gradients of each step, as flat parameters."""
    steps = c.steps if steps is None else steps
    args = (c.layout, c.found, steps, [c.targets[0]] * len(steps) if steps is c.generic else c.targets)
    if name in ("D_RTRL", "ES_D_RTRL"):
        return ro.d_rtrl(*args, decay=DECAY if name == "ES_D_RTRL" else None)
    if name == "RTRL":
        return ro.rtrl(*args)
    n = LEARNERS[name].n
    return ro.rtrl(*args, whole=False, every=False) if n is None else ro.snap(*args[:2], c.generic[0], *args[2:], n)


def never(c: Case, name: str):
    """Names of leaves whose gradient is zero whatever the numbers are."""
    grads = expected(c, name, c.generic)[1]
    zero = [key for key, at in c.layout.theta.items() if not np.any(grads[:, at])]
    inner = {n: "" if p.kind in ("plain", "scaled") else ".value" for n, p in c.drawing.params.items()}
    return tuple(f"params[{n!r}]{inner[n]}[{k!r}]" for n, k in zero)


def by_call(rows):
    return np.asarray(rows).reshape(rm.STEPS // rm.CALL, rm.CALL, -1).sum(1)


def run(c: Case, learner: Any):
    """Losses of each step and gradients of each call of a few steps, the carry going on."""
    model, state = rm.net(c.drawing), rm.start(c.drawing)
    if not all(p.is_trained for p in c.drawing.params.values()):
        learner = dataclasses.replace(learner, train=rm.trained(c.drawing, model))
    ys = tuple(np.stack(t) for t in zip(*c.targets, strict=True))
    carry = learner.init(model, state, jax.ShapeDtypeStruct(c.xs.shape[1:], c.xs.dtype))
    losses, grads = [], []
    for t in range(0, rm.STEPS, rm.CALL):
        now = slice(t, t + rm.CALL)
        part, grad, carry = se.online_grad(
            learner, rm.loss, model, carry, c.xs[now], tuple(y[now] for y in ys), chunk=rm.CALL
        )
        losses.append(part)
        grads.append(flat(c, grad))
    return np.concatenate(losses), np.stack(grads)


def flat(c: Case, grad):
    found = []
    for name, k in c.layout.theta:
        part = grad.params[name]
        leaf = part.value[k] if isinstance(part, se.ETraceParam) else part[k]
        found.append(np.asarray(leaf).ravel())
    return np.concatenate(found) if found else np.zeros(0)


def deviation(c: Case, got, true):
    """The worst of any leaf in any call, relative to that leaf then, or to a millionth of its largest."""
    worst, where = 0.0, ""
    top = np.abs(true).max(initial=0.0)
    for key, at in c.layout.theta.items():
        own = np.abs(true[:, at]).max(1, initial=0.0)
        scale = np.maximum(np.maximum(own, 1e-6 * own.max(initial=0.0)), 1e-9 * top + 1e-300)
        off = np.abs(got[:, at] - true[:, at]).max(1, initial=0.0) / scale
        if not np.all(off <= worst):
            worst, where = float(off.max()), key
    return worst, where


class Verdict(NamedTuple):
    """`refused` in the words of the library, or how far its gradients are off, and of which leaf."""

    refused: str | None
    error: float
    where: Any


def compare(c: Case, name: str) -> Verdict:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            losses, grads = run(c, dataclasses.replace(LEARNERS[name], allow_zero=never(c, name)))
        except (ValueError, NotImplementedError) as error:
            return Verdict(str(error), 0.0, None)
    true_losses, true = expected(c, name)
    off, where = deviation(c, grads, by_call(true))
    off_loss = float(np.max(np.abs(losses - true_losses) / np.maximum(np.abs(true_losses), 1e-9)))
    return Verdict(None, max(off, off_loss), where)
