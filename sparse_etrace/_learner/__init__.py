"""The learners, one file each."""

from .bptt import BPTT as BPTT
from .d_rtrl import D_RTRL as D_RTRL
from .e_prop import EProp as EProp
from .es_d_rtrl import ES_D_RTRL as ES_D_RTRL
from .hybrid import Hybrid as Hybrid
from .learner import Carry as Carry, Learner as Learner, Window as Window
from .ostl import OSTL as OSTL
from .ottt import OTTT as OTTT
from .rflo import RFLO as RFLO
from .rtrl import RTRL as RTRL
from .snap import SnAp as SnAp
from .tbptt import TBPTT as TBPTT
from .three_factor import ThreeFactor as ThreeFactor
from .uoro import UORO as UORO
