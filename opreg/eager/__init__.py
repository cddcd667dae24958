"""``opreg.use``: calls of native losses and activations in eager mode go to the ops."""

from ._use import use as use
