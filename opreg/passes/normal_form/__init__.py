"""Expressions of tensors in a form that does not depend on how they are written."""

from . import meaning as meaning
