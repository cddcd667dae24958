"""Losses and activations on more than one process.

A call with DTensors needs nothing from here: the ops take them as soon as ``torch.distributed.tensor`` is imported, and
so do ``opreg.functional`` and ``opreg.nn``. Each op's rule follows from its declaration. What the values are counted by
stays split: the batch, positions, of a pointwise loss every dimension. Where the classes of ``cross_entropy``,
``nll_loss``, ``softmax_focal_loss``, ``arcface_loss``, ``amsoftmax_loss``, ``distillation_loss`` or
``linear_cross_entropy`` are split, the scores stay where they are, too. Whatever else is split is gathered, and a
warning says so once. A reduced loss is replicated: each process's sum and what it counts are added up over all, and
then divided. Values of reduction ``"none"`` are split as the batch is.
"""

from ._styles import LossParallel as LossParallel
from ._vocab import vocab_parallel_cross_entropy as vocab_parallel_cross_entropy
from ._vocab import vocab_parallel_linear_cross_entropy as vocab_parallel_linear_cross_entropy

__all__ = ["LossParallel", "vocab_parallel_cross_entropy", "vocab_parallel_linear_cross_entropy"]
