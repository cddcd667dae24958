"""What calls of torch mean, as operations on normal forms: a file for each kind."""

from . import indexing as indexing
from . import losses as losses
from . import pointwise as pointwise
from . import shapes as shapes
