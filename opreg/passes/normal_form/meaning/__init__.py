"""What calls of torch mean, as operations on normal forms: a file for each kind."""

from . import indexing as indexing
from . import losses as losses
from . import matrices as matrices
from . import norms as norms
from . import pointwise as pointwise
from . import shapes as shapes
from . import sorting as sorting
