"""What calls of torch mean, as operations on normal forms: one file a kind."""

from . import boxes as boxes
from . import classes as classes
from . import pointwise as pointwise
from . import shapes as shapes
