"""Shape rules, and the fake-tensor implementations that follow from them (installed as ``opreg.meta``)."""

from .fakes import register_fakes as register_fakes
from .rules import ShapeRule as ShapeRule
from .rules import bins as bins
from .rules import boxes as boxes
from .rules import broadcast as broadcast
from .rules import class_sums as class_sums
from .rules import classes as classes
from .rules import ctc as ctc
from .rules import expanding as expanding
from .rules import image_pairs as image_pairs
from .rules import images as images
from .rules import margin_rows as margin_rows
from .rules import regions as regions
from .rules import rows as rows
from .rules import same as same
from .rules import transducer as transducer
from .rules import typed_by as typed_by
from .rules import variance as variance
from .rules import vectors as vectors
from .states import State as State
from .states import ctc_state as ctc_state
from .states import per_group as per_group
from .states import per_row as per_row
from .states import transducer_state as transducer_state
