"""The learning rules, each in a file of its own; no rule imports another."""

from collections.abc import Callable

import jax

from .bptt import BPTT as BPTT
from .bridged import Bridged as Bridged
from .d_rtrl import D_RTRL as D_RTRL
from .e_prop import EProp as EProp
from .es_d_rtrl import ES_D_RTRL as ES_D_RTRL
from .events import Events as Events
from .hybrid import Hybrid as Hybrid
from .learner import Carry as Carry, Learner as Learner, RuleLearner, Window as Window
from .ostl import OSTL as OSTL
from .ottt import OTTT as OTTT
from .rflo import RFLO as RFLO
from .rtrl import RTRL as RTRL
from .snap import SnAp as SnAp
from .tbptt import TBPTT as TBPTT
from .three_factor import ThreeFactor as ThreeFactor
from .trace_learner import TraceLearner as TraceLearner, TraceTerms as TraceTerms
from .uoro import UORO as UORO

# Every rule by its name, made for a state leaf that is taught where a rule needs one: for the command line, costs and
# tests. A number is that of the rule's own steps.
LEARNERS: dict[str, Callable[..., RuleLearner]] = {
    "D_RTRL": lambda leaf: D_RTRL(),
    "ES_D_RTRL": lambda leaf: ES_D_RTRL(),
    "Hybrid": lambda leaf: Hybrid(),
    "EProp": lambda leaf: EProp(leaf=leaf),
    "RFLO": lambda leaf: RFLO(leaf=leaf, key=jax.random.key(0)),
    "ThreeFactor": lambda leaf: ThreeFactor(leaf=leaf),
    "OSTL": lambda leaf: OSTL(),
    "OTTT": lambda leaf: OTTT(decay=0.9),
    "Bridged": lambda leaf, window=16: Bridged(window),
    "UORO": lambda leaf: UORO(key=jax.random.key(0)),
    "SnAp": lambda leaf, n=2: SnAp(n=n),
    "RTRL": lambda leaf: RTRL(),
    "TBPTT": lambda leaf, steps=16: TBPTT(steps=steps),
    "BPTT": lambda leaf: BPTT(),
}
