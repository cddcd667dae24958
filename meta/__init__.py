"""Shape rules, and the fake-tensor implementations that follow from them (installed as ``opreg.meta``)."""

from .fakes import register_fakes as register_fakes
from .rules import Rule as Rule
from .rules import State as State
from .rules import boxes as boxes
from .rules import broadcast as broadcast
from .rules import class_sums as class_sums
from .rules import classes as classes
from .rules import ctc as ctc
from .rules import ctc_state as ctc_state
from .rules import images as images
from .rules import margin_rows as margin_rows
from .rules import per_group as per_group
from .rules import per_row as per_row
from .rules import regions as regions
from .rules import rows as rows
from .rules import same as same
from .rules import typed_by as typed_by
from .rules import vectors as vectors
