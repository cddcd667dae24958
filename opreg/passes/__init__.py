"""Rewriting: native and hand-written losses and activations of existing programs become ops."""

from ._fuse import fuse as fuse
from ._report import Left as Left
from ._report import Report as Report
from ._report import Swapped as Swapped
from ._rule import NearMiss as NearMiss
from ._rule import Rule as Rule
from .rules import RULES as RULES
