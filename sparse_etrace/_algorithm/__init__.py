"""The learners, one file each."""

from .base import Carry as Carry, Learner as Learner
from .bptt import BPTT as BPTT
from .d_rtrl import D_RTRL as D_RTRL
from .es_d_rtrl import ES_D_RTRL as ES_D_RTRL
from .hybrid import Hybrid as Hybrid
