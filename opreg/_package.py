"""The name of this package: ``opreg``, unless the loader of a kernel hub gave it another."""

PACKAGE = __name__.partition(".")[0]
