"""Spikes: inputs from rates, values and lists of events; what populations do, and losses and limits on it."""

from .encoders import latency, poisson, rate, regular
from .events import Active, EventFile, active, frames, read_events
from .limits import Limits
from .perturbed import Perturbed, perturbed
from .statistics import statistics
from .watched import Mean, Watched, bound_loss, rate_loss, watched

__all__ = [
    "Active",
    "EventFile",
    "Limits",
    "Mean",
    "Perturbed",
    "Watched",
    "active",
    "bound_loss",
    "frames",
    "latency",
    "perturbed",
    "poisson",
    "rate",
    "rate_loss",
    "read_events",
    "regular",
    "statistics",
    "watched",
]
