# Written by `python -m opreg stubs`: edit the declarations in opreg/ops instead.

import torch
from torch import Tensor

from ._averaging import EMA as EMA
from ._box import WIoULoss as WIoULoss
from ._convolution import CoordConv2d as CoordConv2d
from ._convolution import DynamicConv2d as DynamicConv2d
from ._linear import LinearCrossEntropyLoss as LinearCrossEntropyLoss
from ._margin import AMSoftmax as AMSoftmax
from ._margin import ArcFace as ArcFace

class Swish(torch.nn.Module):
    """The input times its own sigmoid: smooth, not monotonic, unbounded above.

    A default activation of vision models and of gated units in language models; beta = 1 is SiLU.

    The module over ``opreg.functional.swish``.

    Args:
        beta: how sharp the gate is: 0 halves the input, a large one makes ReLU. A constant.

    Call:
        input: any shape; float64, float32, bfloat16 or float16.

    Returns:
        Of the shape, the dtype and the memory format of ``input``.

    Raises:
        RuntimeError: an input of another dtype; a beta that is NaN.

    Formula:
        x·σ(beta·x)

    Source:
        arXiv 1710.05941; torch.nn.functional.silu for beta = 1

    Example:
        >>> x = torch.randn(2, 3)
        >>> y = opreg.nn.Swish(beta=1.5)(x)
    """

    beta: float
    def __init__(self, beta: float = 1.0) -> None: ...
    def forward(self, input: Tensor) -> Tensor: ...

class HardSwish(torch.nn.Module):
    """Swish made of straight pieces and a parabola between −3 and 3.

    For mobile networks: no exponential, nearly the same shape.

    The module over ``opreg.functional.hard_swish``.

    Call:
        input: any shape; float64, float32, bfloat16 or float16.

    Returns:
        Of the shape, the dtype and the memory format of ``input``.

    Raises:
        RuntimeError: an input of another dtype.

    Formula:
        x·min(max(x + 3, 0), 6)/6

    Source:
        arXiv 1905.02244; torch.nn.functional.hardswish

    Example:
        >>> opreg.nn.HardSwish()(torch.tensor([-3.0, 0.0, 3.0]))
        tensor([-0., 0., 3.])
    """

    def __init__(self) -> None: ...
    def forward(self, input: Tensor) -> Tensor: ...

class Mish(torch.nn.Mish):
    """The input times tanh of its softplus: smooth, not monotonic, unbounded above.

    In place of ReLU in detectors and deep classifiers.

    The module over ``opreg.functional.mish``.

    Args:
        inplace: taken for torch's sake: the gradient needs the input, so the result is a tensor of its own.

    Call:
        input: any shape; float64, float32, bfloat16 or float16.

    Returns:
        Of the shape, the dtype and the memory format of ``input``.

    Raises:
        RuntimeError: an input of another dtype.

    Formula:
        x·tanh(log(1 + eˣ))

    Source:
        arXiv 1908.08681; torch.nn.functional.mish

    Example:
        >>> x = torch.randn(2, 3)
        >>> y = opreg.nn.Mish()(x)
    """

    def forward(self, input: Tensor) -> Tensor: ...

class BCELoss(torch.nn.BCELoss):
    """Binary cross entropy of probabilities.

    Where the model ends in a sigmoid of its own; ``binary_cross_entropy_with_logits`` keeps more digits.

    The module over ``opreg.functional.binary_cross_entropy``.

    Args:
        weight: a factor for each element, of a shape that expands to that of ``input``. A constant.
        size_average: deprecated, as in torch.nn.
        reduce: deprecated, as in torch.nn.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Call:
        input: probabilities in [0, 1], any shape.
        target: in [0, 1], of the shape of ``input``; any real dtype.

    Returns:
        0-d, or of the shape of ``input`` with reduction ``"none"``.

    Raises:
        RuntimeError: shapes that do not fit; a weight that requires grad; on the CPU an input outside [0, 1] (on a
            GPU it gives NaN).

    Formula:
        −w·(t·log x + (1 − t)·log(1 − x)), both logarithms no less than −100

    Source:
        torch.nn.functional.binary_cross_entropy

    Example:
        >>> input = torch.rand(4, 3, requires_grad=True)
        >>> target = torch.tensor([[0.0, 1, 1], [0, 0, 1], [1, 0, 0], [0, 0, 0]])  # any number of labels a row
        >>> opreg.nn.BCELoss()(input, target).backward()
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor: ...

class BCEWithLogitsLoss(torch.nn.BCEWithLogitsLoss):
    """Binary cross entropy of logits: a sigmoid and its cross entropy in one.

    For labels that do not exclude each other, and for binary masks. Finite for any finite logit.

    The module over ``opreg.functional.binary_cross_entropy_with_logits``.

    Args:
        weight: a factor for each element, of a shape that expands to that of ``input``. A constant.
        size_average: deprecated, as in torch.nn.
        reduce: deprecated, as in torch.nn.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        pos_weight: a factor for the positive part, of a shape that expands to that of ``input``: above 1 for more
            recall. A constant.

    Call:
        input: logits, any shape.
        target: in [0, 1], of the shape of ``input``; any real dtype.

    Returns:
        0-d, or of the shape of ``input`` with reduction ``"none"``.

    Raises:
        RuntimeError: shapes that do not fit; a weight or pos_weight that requires grad.

    Formula:
        −w·(p·t·log σ(x) + (1 − t)·log(1 − σ(x))), p = pos_weight

    Source:
        torch.nn.functional.binary_cross_entropy_with_logits

    Example:
        >>> input = torch.randn(4, 3, requires_grad=True)
        >>> target = torch.tensor([[0.0, 1, 1], [0, 0, 1], [1, 0, 0], [0, 0, 0]])  # any number of labels a row
        >>> opreg.nn.BCEWithLogitsLoss()(input, target).backward()
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor: ...

class FocalLoss(torch.nn.Module):
    """Sigmoid focal loss: binary cross entropy in which what is classified well already counts little.

    For rare positives among many easy negatives, as in dense detection.

    The module over ``opreg.functional.focal_loss``.

    Args:
        alpha: weight of the positives; the negatives have 1 − alpha. At most 1; below 0 there is no weight.
        gamma: how strongly easy elements are turned down; >= 0, and 0 is cross entropy.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Call:
        input: logits, any shape.
        target: in [0, 1], of the shape of ``input``; any real dtype. Class indices must be one-hot first.

    Returns:
        0-d, or of the shape of ``input`` with reduction ``"none"``.

    Raises:
        RuntimeError: a target of another shape, gamma < 0, alpha > 1.

    Formula:
        α_t·(1 − p_t)^γ·ce, p = σ(x), p_t = p·t + (1 − p)(1 − t), α_t = α·t + (1 − α)(1 − t),
        ce = −t·log p − (1 − t)·log(1 − p)

    Source:
        arXiv 1708.02002

    Example:
        >>> scores, labels = torch.randn(8, 5, requires_grad=True), torch.randint(0, 5, (8,))
        >>> target = torch.nn.functional.one_hot(labels, 5)  # one target in [0, 1] for each score
        >>> opreg.nn.FocalLoss(gamma=1.5)(scores, target).backward()
    """

    alpha: float
    gamma: float
    reduction: str
    def __init__(self, alpha: float = 0.25, gamma: float = 2.0, reduction: str = "mean") -> None: ...
    def forward(self, input: Tensor, target: Tensor) -> Tensor: ...

class NLLLoss(torch.nn.NLLLoss):
    """Negative log likelihood of class indices, from log-probabilities.

    Behind a ``log_softmax`` of one's own; from logits, ``cross_entropy`` does both in one pass.

    The module over ``opreg.functional.nll_loss``.

    Args:
        weight: a factor for each class, (C). A constant.
        size_average: deprecated, as in torch.nn.
        ignore_index: the target value whose positions add nothing to the loss; any integer.
        reduce: deprecated, as in torch.nn.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Call:
        input: log-probabilities (C), or (N, C, d1 … dk).
        target: class indices in [0, C), () or (N, d1 … dk); int64, int32 or uint8.

    Returns:
        0-d, or of the shape of ``target`` with reduction ``"none"``. The mean divides by the sum of the valid targets'
        weights: NaN where all are ignored.

    Raises:
        RuntimeError: shapes or dtypes that do not fit; a weight that requires grad; on the CPU a class index out of
            range (on a GPU it gives NaN at its place).

    Formula:
        −w_y·x_y

    Source:
        torch.nn.functional.nll_loss

    Example:
        >>> log_p = torch.log_softmax(torch.randn(8, 5, requires_grad=True), 1)
        >>> target = torch.randint(0, 5, (8,))  # a class index a row
        >>> opreg.nn.NLLLoss()(log_p, target).backward()
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor: ...

class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """Cross entropy of logits with class indices or class probabilities.

    For classes that exclude each other: classification, segmentation, language models.

    The module over ``opreg.functional.cross_entropy``.

    Args:
        weight: a factor for each class, (C). A constant for class indices, differentiated for probabilities.
        size_average: deprecated, as in torch.nn.
        ignore_index: the class index whose positions add nothing to the loss; any integer. Not for probabilities.
        reduce: deprecated, as in torch.nn.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        label_smoothing: share of the target's mass that is spread over all classes, in [0, 1].

    Call:
        input: logits (C), or (N, C, d1 … dk).
        target: class indices in [0, C), () or (N, d1 … dk), int64, int32 or uint8; or probabilities of the shape of
            ``input``.

    Returns:
        0-d, or of the shape of class indices with reduction ``"none"``. For class indices the mean divides by the sum
        of the valid targets' weights: NaN where all are ignored. For probabilities it divides by the number of rows.

    Raises:
        RuntimeError: shapes or dtypes that do not fit; label_smoothing outside [0, 1]; a weight that requires grad
            beside class indices; on the CPU a class index out of range (on a GPU it gives NaN at its place).

    Formula:
        −Σ_c w_c·q_c·log softmax(x)_c, q = (1 − s)·onehot(y) + s/C, s = label_smoothing

    Source:
        torch.nn.functional.cross_entropy

    Example:
        >>> input = torch.randn(8, 5, requires_grad=True)
        >>> target = torch.randint(0, 5, (8,))  # a class index a row
        >>> opreg.nn.CrossEntropyLoss(label_smoothing=0.1)(input, target).backward()
        >>> target = torch.randn(8, 5).softmax(1)  # or probabilities
        >>> opreg.nn.CrossEntropyLoss()(input, target).backward()
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor: ...

class PoissonNLLLoss(torch.nn.PoissonNLLLoss):
    """Negative log likelihood of counts under a Poisson distribution.

    For targets that count: visits, clicks, photons.

    The module over ``opreg.functional.poisson_nll_loss``.

    Args:
        log_input: whether ``input`` is the logarithm.
        full: whether Stirling's approximation of log t! is added, where t > 1.
        size_average: deprecated, as in torch.nn.
        eps: added within the logarithm where ``log_input`` is False; >= 0.
        reduce: deprecated, as in torch.nn.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Call:
        input: logarithm of the expected count; without ``log_input`` the expected count itself, > 0. Any shape.
        target: counts >= 0, of a shape that broadcasts with that of ``input``.

    Returns:
        0-d, or of the broadcast shape with reduction ``"none"``.

    Raises:
        RuntimeError: shapes that do not broadcast, eps < 0.

    Formula:
        eˣ − t·x; without ``log_input`` x − t·log(x + eps)

    Source:
        torch.nn.functional.poisson_nll_loss

    Example:
        >>> log_rate = torch.randn(8, requires_grad=True)
        >>> target = torch.tensor([0.0, 3, 1, 0, 7, 2, 2, 1])  # counts
        >>> opreg.nn.PoissonNLLLoss()(log_rate, target).backward()
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor: ...

class GaussianNLLLoss(torch.nn.GaussianNLLLoss):
    """Negative log likelihood under a normal distribution, whose variance the model gives as well.

    For regression that knows how sure it is.

    The module over ``opreg.functional.gaussian_nll_loss``.

    Args:
        full: whether the constant log(2π)/2 is added.
        eps: the least variance that is divided by; >= 0. What it changes is not differentiated.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Call:
        input: expectation, any shape.
        target: of a shape that broadcasts with that of ``input``.
        var: variance >= 0: of the shape of ``input``, or with one dimension of 1 or the last one missing (a variance a
            row); or one number for all. A negative one gives NaN at its place.

    Returns:
        0-d, or of the broadcast shape with reduction ``"none"``.

    Raises:
        RuntimeError: shapes that do not fit, eps < 0.

    Formula:
        (log v + (x − t)²/v)/2, v = max(var, eps)

    Source:
        torch.nn.functional.gaussian_nll_loss

    Example:
        >>> mean, log_var = torch.randn(8, 2, requires_grad=True), torch.zeros(8, 2, requires_grad=True)
        >>> target = torch.randn(8, 2)  # a value for each mean
        >>> opreg.nn.GaussianNLLLoss()(mean, target, log_var.exp()).backward()
    """

    def forward(self, input: Tensor, target: Tensor, var: Tensor | float) -> Tensor: ...

class KLDivLoss(torch.nn.KLDivLoss):
    """Kullback-Leibler divergence, element by element, from log-probabilities.

    To bring one distribution near another, given one. Mind the order, the target's logarithm less the input's, and that
    only ``"batchmean"`` and ``"sum"`` add up to the divergence.

    The module over ``opreg.functional.kl_div``.

    Args:
        size_average: deprecated, as in torch.nn.
        reduce: deprecated, as in torch.nn.
        reduction: ``"none"``, ``"mean"``, ``"sum"`` or ``"batchmean"``: the sum, divided by the size of the input's
            first dimension.
        log_target: whether ``target`` is logarithms.

    Call:
        input: log-probabilities, any shape.
        target: probabilities >= 0, or log-probabilities with ``log_target``, of a shape that broadcasts with that of
            ``input``.

    Returns:
        0-d, or of the broadcast shape with reduction ``"none"``.

    Raises:
        RuntimeError: shapes that do not broadcast, an unknown reduction.

    Formula:
        t·(log t − x), 0 where t = 0; with ``log_target`` eᵗ·(t − x)

    Source:
        torch.nn.functional.kl_div

    Example:
        >>> input = torch.log_softmax(torch.randn(8, 5, requires_grad=True), 1)
        >>> target = torch.randn(8, 5).softmax(1)  # probabilities
        >>> opreg.nn.KLDivLoss(reduction="batchmean")(input, target).backward()
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor: ...

class SoftMarginLoss(torch.nn.SoftMarginLoss):
    """Logistic loss of a score and a target of 1 or −1.

    For binary classification with signs for labels. Finite where exp(−t·x) is not.

    The module over ``opreg.functional.soft_margin_loss``.

    Args:
        size_average: deprecated, as in torch.nn.
        reduce: deprecated, as in torch.nn.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Call:
        input: scores, any shape.
        target: 1 or −1, of a shape that expands to that of ``input``.

    Returns:
        0-d, or of the shape of ``input`` with reduction ``"none"``.

    Raises:
        RuntimeError: a target that does not expand to the shape of ``input``.

    Formula:
        log(1 + e^(−t·x))

    Source:
        torch.nn.functional.soft_margin_loss

    Example:
        >>> input = torch.randn(4, requires_grad=True)
        >>> target = torch.tensor([1.0, -1.0, -1.0, 1.0])  # signs, not 0 and 1
        >>> opreg.nn.SoftMarginLoss()(input, target).backward()
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor: ...

class HingeEmbeddingLoss(torch.nn.HingeEmbeddingLoss):
    """Of similar pairs the distance, of dissimilar ones what is missing to a margin.

    For embeddings learnt from pairs; the input is a distance.

    The module over ``opreg.functional.hinge_embedding_loss``.

    Args:
        margin: how far dissimilar pairs shall be apart.
        size_average: deprecated, as in torch.nn.
        reduce: deprecated, as in torch.nn.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Call:
        input: distances, any shape.
        target: 1 for similar, −1 for dissimilar, of a shape that broadcasts with that of ``input``.

    Returns:
        0-d, or of the broadcast shape with reduction ``"none"``.

    Raises:
        RuntimeError: shapes that do not broadcast; a margin that is NaN.

    Formula:
        x where t = 1, max(0, margin − x) where t = −1; for another t the sum of both

    Source:
        torch.nn.functional.hinge_embedding_loss

    Example:
        >>> distance = torch.rand(4, requires_grad=True)
        >>> target = torch.tensor([1.0, -1.0, -1.0, 1.0])  # 1: similar
        >>> opreg.nn.HingeEmbeddingLoss()(distance, target).backward()
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor: ...

class MarginRankingLoss(torch.nn.MarginRankingLoss):
    """What is missing for the first score to lead the second by a margin, or the other way round.

    For learning to rank from pairs.

    The module over ``opreg.functional.margin_ranking_loss``.

    Args:
        margin: by how much.
        size_average: deprecated, as in torch.nn.
        reduce: deprecated, as in torch.nn.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Call:
        input1: scores, any shape.
        input2: scores, of a shape that broadcasts with that of ``input1``.
        target: 1 where ``input1`` shall be the larger, −1 where ``input2``; of the same number of dimensions.

    Returns:
        0-d, or of the broadcast shape with reduction ``"none"``.

    Raises:
        RuntimeError: shapes that do not broadcast, or differ in the number of dimensions; a margin that is NaN.

    Formula:
        max(0, margin − t·(x₁ − x₂))

    Source:
        torch.nn.functional.margin_ranking_loss

    Example:
        >>> first, second = torch.randn(4, requires_grad=True), torch.randn(4)
        >>> target = torch.tensor([1.0, -1.0, -1.0, 1.0])  # 1: the first shall rank higher
        >>> opreg.nn.MarginRankingLoss(margin=0.1)(first, second, target).backward()
    """

    def forward(self, input1: Tensor, input2: Tensor, target: Tensor) -> Tensor: ...

class L1Loss(torch.nn.L1Loss):
    """Absolute difference.

    For regression that outliers shall not rule; the median is its optimum. At a difference of 0 the gradient is 0.

    The module over ``opreg.functional.l1_loss``.

    Args:
        size_average: deprecated, as in torch.nn.
        reduce: deprecated, as in torch.nn.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Call:
        input: any shape.
        target: of a shape that broadcasts with that of ``input``.

    Returns:
        0-d, or of the broadcast shape with reduction ``"none"``.

    Raises:
        RuntimeError: shapes that do not broadcast.

    Formula:
        |x − t|

    Source:
        torch.nn.functional.l1_loss

    Example:
        >>> input, target = torch.randn(8, 2, requires_grad=True), torch.randn(8, 2)  # a value for each
        >>> opreg.nn.L1Loss()(input, target).backward()
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor: ...

class MSELoss(torch.nn.MSELoss):
    """Squared difference.

    For regression; the mean is its optimum.

    The module over ``opreg.functional.mse_loss``.

    Args:
        size_average: deprecated, as in torch.nn.
        reduce: deprecated, as in torch.nn.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Call:
        input: any shape.
        target: of a shape that broadcasts with that of ``input``.

    Returns:
        0-d, or of the broadcast shape with reduction ``"none"``.

    Raises:
        RuntimeError: shapes that do not broadcast.

    Formula:
        (x − t)²

    Source:
        torch.nn.functional.mse_loss

    Example:
        >>> input, target = torch.randn(8, 2, requires_grad=True), torch.randn(8, 2)  # a value for each
        >>> opreg.nn.MSELoss()(input, target).backward()
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor: ...

class SmoothL1Loss(torch.nn.SmoothL1Loss):
    """Quadratic near 0, linear with slope 1 from ``beta`` on.

    For box regression, and regression with outliers: gradients are bounded by 1, and vanish towards the optimum.

    The module over ``opreg.functional.smooth_l1_loss``.

    Args:
        size_average: deprecated, as in torch.nn.
        reduce: deprecated, as in torch.nn.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        beta: where the two meet; >= 0, and 0 is ``l1_loss``.

    Call:
        input: any shape.
        target: of a shape that broadcasts with that of ``input``.

    Returns:
        0-d, or of the broadcast shape with reduction ``"none"``.

    Raises:
        RuntimeError: shapes that do not broadcast, beta < 0.

    Formula:
        d²/(2·beta) where d = |x − t| < beta, else d − beta/2

    Source:
        torch.nn.functional.smooth_l1_loss; arXiv 1504.08083

    Example:
        >>> input, target = torch.randn(8, 2, requires_grad=True), torch.randn(8, 2)  # a value for each
        >>> opreg.nn.SmoothL1Loss(beta=0.5)(input, target).backward()
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor: ...

class HuberLoss(torch.nn.HuberLoss):
    """Quadratic near 0, linear with slope ``delta`` from ``delta`` on.

    For regression with outliers: delta·smooth_l1_loss with beta = delta.

    The module over ``opreg.functional.huber_loss``.

    Args:
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        delta: where the two meet; > 0.

    Call:
        input: any shape.
        target: of a shape that broadcasts with that of ``input``.

    Returns:
        0-d, or of the broadcast shape with reduction ``"none"``.

    Raises:
        RuntimeError: shapes that do not broadcast, delta <= 0.

    Formula:
        d²/2 where d = |x − t| <= delta, else delta·(d − delta/2)

    Source:
        torch.nn.functional.huber_loss; Huber 1964

    Example:
        >>> input, target = torch.randn(8, 2, requires_grad=True), torch.randn(8, 2)  # a value for each
        >>> opreg.nn.HuberLoss(delta=0.5)(input, target).backward()
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor: ...
