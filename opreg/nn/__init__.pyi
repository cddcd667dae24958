# Written by `python -m opreg stubs`: edit the declarations in opreg/ops instead.

from collections.abc import Sequence

import torch
from torch import Tensor

from ._angular import AMSoftmax as AMSoftmax
from ._angular import ArcFace as ArcFace
from ._averaging import EMA as EMA
from ._box import WIoULoss as WIoULoss
from ._convolution import CoordConv2d as CoordConv2d
from ._convolution import DynamicConv2d as DynamicConv2d
from ._linear import LinearCrossEntropyLoss as LinearCrossEntropyLoss

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
        torch.nn.functional.hardswish; arXiv 1905.02244

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
        torch.nn.functional.mish; arXiv 1908.08681

    Example:
        >>> x = torch.randn(2, 3)
        >>> y = opreg.nn.Mish()(x)
    """

    def forward(self, input: Tensor) -> Tensor: ...

class AffinityLoss(torch.nn.Module):
    """Local affinity loss: pixels of one window should score alike if and only if their labels are equal.

    Trains the affinity of features or logits near each other, sharpest at the borders of segments, where a pixelwise
    loss says nothing of how two pixels relate. Only equality of labels counts: they may be any integers.

    The module over ``opreg.functional.affinity_loss``.

    Args:
        kernel_size: the side of the windows, odd, at most H and W.
        ignore_index: a label whose pixels belong to no pair; any integer.

    Call:
        input: scores or features of shape (N, C, H, W).
        target: labels of shape (N, H, W), of dtype int64, int32 or uint8.

    Returns:
        The mean over all pairs of all windows, 0-d; 0 where there is no pair.

    Raises:
        RuntimeError: shapes that do not fit; a kernel_size that is even, too small or too large.

    Formula:
        the mean of binary_cross_entropy_with_logits(⟨x_a, x_b⟩, [y_a = y_b]), ⟨x_a, x_b⟩ the inner product over the
        channels, over every k × k window that fits and all ordered pairs (a, b) of its pixels, a = b too

    Source:
        Yu et al., arXiv 2004.01547, made local

    Example:
        >>> scores = torch.randn(2, 19, 64, 64, requires_grad=True)
        >>> target = torch.randint(0, 19, (2, 64, 64))
        >>> opreg.nn.AffinityLoss(kernel_size=3)(scores, target).backward()
    """

    kernel_size: int
    ignore_index: int
    def __init__(self, kernel_size: int = 3, ignore_index: int = -100) -> None: ...
    def forward(self, input: Tensor, target: Tensor) -> Tensor: ...

class AffinityFieldLoss(torch.nn.Module):
    """Affinity field loss: neighbouring pixels should predict alike inside a segment, and unalike across its border.

    Beside a pixelwise loss, it keeps thin structures and straightens the borders of a segmentation. Only equality of
    labels counts: they may be any integers.

    The module over ``opreg.functional.affinity_field_loss``.

    Args:
        kl_margin: how far apart two pixels of different labels should be, >= 0.
        lambda_edge: the weight of neighbours of the same label, >= 0.
        lambda_not_edge: the weight of neighbours of different labels, >= 0.
        ignore_index: a label whose pixels belong to no pair; any integer.

    Call:
        input: logits of shape (N, C, H, W).
        target: labels of shape (N, H, W), of dtype int64, int32 or uint8.

    Returns:
        The sum over all pairs, divided by 8 times the number of valid pixels, 0-d; 0 where none is valid.

    Raises:
        RuntimeError: shapes that do not fit; a negative or NaN margin or weight.

    Formula:
        for each pixel i and each of its 8 neighbours j in the image lambda_edge·D where the labels are equal, else
        lambda_not_edge·max(0, kl_margin − D), D = KL(p_j ‖ p_i), p = softmax(x) over the channels; at D = kl_margin the
        gradient is half of each side's

    Source:
        Ke et al., arXiv 1803.10335

    Example:
        >>> logits = torch.randn(2, 19, 64, 64, requires_grad=True)
        >>> target = torch.randint(0, 19, (2, 64, 64))
        >>> opreg.nn.AffinityFieldLoss()(logits, target).backward()
    """

    kl_margin: float
    lambda_edge: float
    lambda_not_edge: float
    ignore_index: int
    def __init__(
        self,
        kl_margin: float = 3.0,
        lambda_edge: float = 1.0,
        lambda_not_edge: float = 1.0,
        ignore_index: int = -100,
    ) -> None: ...
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
        ignore_index: the class index whose positions add nothing to the loss; any integer, beside probabilities a
            negative one, which is no class.
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
        RuntimeError: shapes or dtypes that do not fit; label_smoothing outside [0, 1]; an ignore_index >= 0 beside
            probabilities, a weight that requires grad beside class indices; on the CPU a class index out of range (on
            a GPU it gives NaN at its place).

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

class SoftmaxFocalLoss(torch.nn.Module):
    """Cross entropy that fades where the model is right already.

    For classes of very different frequency, as in dense prediction: the many easy positions no longer outweigh the few
    hard ones.

    The module over ``opreg.functional.softmax_focal_loss``.

    Args:
        weight: a factor for each class, (C); a constant.
        gamma: how fast it fades, >= 0. 0 is cross entropy.
        ignore_index: the target value whose positions add nothing to the loss; any integer.
        reduction: ``"none"``, ``"mean"`` over the positions that are not ignored (their number, not their weights) or
            ``"sum"``.

    Call:
        input: logits, (C) or (N, C, d1 … dk).
        target: class indices in [0, C), int64, int32 or uint8; () or (N, d1 … dk).

    Returns:
        0-d, or of the shape of ``target`` with reduction ``"none"``; of the dtype of ``input``.

    Raises:
        RuntimeError: shapes or dtypes do not fit, gamma < 0, or on the CPU a class index is out of range (on a GPU its
            position is NaN).

    Formula:
        −w_y·(1 − p_y)^γ·log p_y, p = softmax(x)

    Source:
        Lin et al., Focal loss for dense object detection, arXiv 1708.02002

    Example:
        >>> logits, labels = torch.randn(8, 19, 64, 64), torch.randint(0, 19, (8, 64, 64))
        >>> loss = opreg.nn.SoftmaxFocalLoss(gamma=2.0, ignore_index=255)(logits, labels)
    """

    weight: Tensor | None
    gamma: float
    ignore_index: int
    reduction: str
    def __init__(
        self,
        weight: Tensor | None = None,
        gamma: float = 2.0,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None: ...
    def forward(self, input: Tensor, target: Tensor) -> Tensor: ...

class PCSoftmaxCrossEntropyLoss(torch.nn.Module):
    """Cross entropy whose softmax knows how frequent the classes are: each class counts by its prior.

    For imbalanced data sets: what the logits learn is what the prior does not say already, so that at test time their
    plain softmax treats the classes alike.

    The module over ``opreg.functional.pc_softmax_cross_entropy``.

    Args:
        class_prior: the frequency of each class, (C), > 0; a constant. It need not sum to 1.
        ignore_index: the target value whose positions add nothing to the loss; any integer.
        reduction: ``"none"``, ``"mean"`` over the positions that are not ignored or ``"sum"``.

    Call:
        input: logits, (C) or (N, C, d1 … dk).
        target: class indices in [0, C), int64, int32 or uint8; () or (N, d1 … dk).

    Returns:
        0-d, or of the shape of ``target`` with reduction ``"none"``; of the dtype that ``input`` and ``class_prior``
        promote to. It may be negative.

    Raises:
        RuntimeError: shapes or dtypes do not fit, or on the CPU a prior is not positive or a class index out of range
            (on a GPU what depends on it is NaN).

    Formula:
        −x_y + log Σ_c π_c·e^(x_c)

    Source:
        Liu et al., arXiv 1911.10688

    Example:
        >>> logits, labels = torch.randn(32, 10), torch.randint(0, 10, (32,))
        >>> counts = torch.bincount(labels, minlength=10).clamp(min=1)
        >>> loss = opreg.nn.PCSoftmaxCrossEntropyLoss(class_prior=counts / counts.sum())(logits, labels)
    """

    class_prior: Tensor
    ignore_index: int
    reduction: str
    def __init__(self, class_prior: Tensor, ignore_index: int = -100, reduction: str = "mean") -> None: ...
    def forward(self, input: Tensor, target: Tensor) -> Tensor: ...

class ArcFaceLoss(torch.nn.Module):
    """Cross entropy over cosines whose target class must win by an angle.

    For embeddings, as of faces: it draws the samples of a class together further than telling the classes apart needs.

    The module over ``opreg.functional.arcface_loss``.

    Args:
        margin: the angle m, in [0, π].
        scale: the factor s of all logits, > 0.
        ignore_index: the target value whose positions add nothing to the loss; any integer.
        reduction: ``"none"``, ``"mean"`` over the positions that are not ignored or ``"sum"``.

    Call:
        cosine: cosines of the angles between embedding and class centres, in [−1, 1]; (C) or (N, C, d1 … dk).
        target: class indices in [0, C), int64, int32 or uint8; () or (N, d1 … dk).

    Returns:
        0-d, or of the shape of ``target`` with reduction ``"none"``; of the dtype of ``cosine``.

    Raises:
        RuntimeError: shapes or dtypes do not fit, an option is outside of its range, or on the CPU a class index is
            (on a GPU its position is NaN). Cosines beyond [−1, 1] are no error; on the CPU a warning says so once.

    Formula:
        cross entropy of s·cos θ_c, but of s·cos(θ_y + m) for the target class; where that would rise again, beyond
        cos θ_y = −cos m, of s·(cos θ_y − m·sin m). sin θ = √max(1 − cos² θ, 1e-7)

    Source:
        Deng et al., ArcFace, arXiv 1801.07698

    Example:
        >>> features, centres = torch.randn(32, 512), torch.randn(1000, 512)
        >>> cosine = F.normalize(features) @ F.normalize(centres).T
        >>> loss = opreg.nn.ArcFaceLoss()(cosine, torch.randint(0, 1000, (32,)))
    """

    margin: float
    scale: float
    ignore_index: int
    reduction: str
    def __init__(
        self,
        margin: float = 0.5,
        scale: float = 64.0,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None: ...
    def forward(self, cosine: Tensor, target: Tensor) -> Tensor: ...

class AMSoftmaxLoss(torch.nn.Module):
    """Cross entropy over cosines whose target class must win by a margin; also known as CosFace.

    For embeddings, as of faces or speakers; simpler than ArcFace, with the margin in the cosine.

    The module over ``opreg.functional.amsoftmax_loss``.

    Args:
        margin: m, >= 0.
        scale: the factor s of all logits, > 0.
        ignore_index: the target value whose positions add nothing to the loss; any integer.
        reduction: ``"none"``, ``"mean"`` over the positions that are not ignored or ``"sum"``.

    Call:
        cosine: cosines of the angles between embedding and class centres, in [−1, 1]; (C) or (N, C, d1 … dk).
        target: class indices in [0, C), int64, int32 or uint8; () or (N, d1 … dk).

    Returns:
        0-d, or of the shape of ``target`` with reduction ``"none"``; of the dtype of ``cosine``.

    Raises:
        RuntimeError: shapes or dtypes do not fit, an option is outside of its range, or on the CPU a class index is
            (on a GPU its position is NaN). Cosines beyond [−1, 1] are no error; on the CPU a warning says so once.

    Formula:
        cross entropy of s·(cos θ_c − m·[c = y])

    Source:
        Wang et al., Additive margin softmax, arXiv 1801.05599

    Example:
        >>> features, centres = torch.randn(32, 512), torch.randn(1000, 512)
        >>> cosine = F.normalize(features) @ F.normalize(centres).T
        >>> loss = opreg.nn.AMSoftmaxLoss()(cosine, torch.randint(0, 1000, (32,)))
    """

    margin: float
    scale: float
    ignore_index: int
    reduction: str
    def __init__(
        self,
        margin: float = 0.35,
        scale: float = 30.0,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None: ...
    def forward(self, cosine: Tensor, target: Tensor) -> Tensor: ...

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
        RuntimeError: shapes that do not fit; a weight that requires grad; on the CPU an input or a target outside
            [0, 1] (on a GPU it gives NaN).

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
        Lin et al., Focal loss for dense object detection, arXiv 1708.02002

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

class IoULoss(torch.nn.Module):
    """How little two boxes overlap: 1 − IoU.

    The measure that detections are judged by; without gradient where the boxes are apart (giou_loss and those after it have one).

    The module over ``opreg.functional.iou_loss``.

    Args:
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        eps: ≥ 0; added to every denominator.

    Call:
        input: predicted boxes (…, 4), each x1, y1, x2, y2 with x2 ≥ x1 and y2 ≥ y1; any floating dtype.
        target: the box that each of them is to become, of the same shape; any real dtype.

    Returns:
        The loss: 0-d, or of shape (…) for ``reduction="none"``. Differentiable in both boxes.

    Raises:
        RuntimeError: the last dimension is not 4, the shapes differ, or an option is out of its range. A box
            whose ends are in the wrong order raises nothing; on the CPU a warning says so once.

    Formula:
        1 − iou, with I the area of the intersection, U that of the union and iou = I / (U + eps)

    Source:
        arXiv 1608.01471 (there as −log IoU)

    Example:
        >>> predicted = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
        >>> target = torch.tensor([[1.0, 0.0, 3.0, 3.0]])  # corners, in any unit; not centre and size
        >>> opreg.nn.IoULoss()(predicted, target)
        tensor(0.7500)
    """

    reduction: str
    eps: float
    def __init__(self, reduction: str = "mean", eps: float = 1e-07) -> None: ...
    def forward(self, input: Tensor, target: Tensor) -> Tensor: ...

class GIoULoss(torch.nn.Module):
    """IoU with a penalty for the empty part of the enclosing box.

    Boxes that are apart have a gradient too.

    The module over ``opreg.functional.giou_loss``.

    Args:
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        eps: ≥ 0; added to every denominator.

    Call:
        input: predicted boxes (…, 4), each x1, y1, x2, y2 with x2 ≥ x1 and y2 ≥ y1; any floating dtype.
        target: the box that each of them is to become, of the same shape; any real dtype.

    Returns:
        The loss: 0-d, or of shape (…) for ``reduction="none"``. Differentiable in both boxes.

    Raises:
        RuntimeError: the last dimension is not 4, the shapes differ, or an option is out of its range. A box
            whose ends are in the wrong order raises nothing; on the CPU a warning says so once.

    Formula:
        1 − iou + (E − U) / (E + eps), with I the area of the intersection, U that of the union and iou = I / (U + eps),
        E the area of the smallest box that encloses both

    Source:
        arXiv 1902.09630

    Example:
        >>> predicted = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
        >>> target = torch.tensor([[1.0, 0.0, 3.0, 3.0]])  # corners, in any unit; not centre and size
        >>> opreg.nn.GIoULoss()(predicted, target)
        tensor(0.8611)
    """

    reduction: str
    eps: float
    def __init__(self, reduction: str = "mean", eps: float = 1e-07) -> None: ...
    def forward(self, input: Tensor, target: Tensor) -> Tensor: ...

class DIoULoss(torch.nn.Module):
    """IoU with a penalty for the distance of the centres.

    Converges faster than giou_loss, which first grows the box.

    The module over ``opreg.functional.diou_loss``.

    Args:
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        eps: ≥ 0; added to every denominator.

    Call:
        input: predicted boxes (…, 4), each x1, y1, x2, y2 with x2 ≥ x1 and y2 ≥ y1; any floating dtype.
        target: the box that each of them is to become, of the same shape; any real dtype.

    Returns:
        The loss: 0-d, or of shape (…) for ``reduction="none"``. Differentiable in both boxes.

    Raises:
        RuntimeError: the last dimension is not 4, the shapes differ, or an option is out of its range. A box
            whose ends are in the wrong order raises nothing; on the CPU a warning says so once.

    Formula:
        1 − iou + ρ² / c², with I the area of the intersection, U that of the union and iou = I / (U + eps), cw × ch the
        size of the smallest box that encloses both, ρ the distance of the centres, c² = cw² + ch² + eps

    Source:
        arXiv 1911.08287

    Example:
        >>> predicted = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
        >>> target = torch.tensor([[1.0, 0.0, 3.0, 3.0]])  # corners, in any unit; not centre and size
        >>> opreg.nn.DIoULoss()(predicted, target)
        tensor(0.8194)
    """

    reduction: str
    eps: float
    def __init__(self, reduction: str = "mean", eps: float = 1e-07) -> None: ...
    def forward(self, input: Tensor, target: Tensor) -> Tensor: ...

class CIoULoss(torch.nn.Module):
    """Distance-IoU with a penalty for another aspect ratio.

    The usual choice for detectors' box regression.

    The module over ``opreg.functional.ciou_loss``.

    Args:
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        eps: ≥ 0; added to every denominator.

    Call:
        input: predicted boxes (…, 4), each x1, y1, x2, y2 with x2 ≥ x1 and y2 ≥ y1; any floating dtype.
        target: the box that each of them is to become, of the same shape; any real dtype.

    Returns:
        The loss: 0-d, or of shape (…) for ``reduction="none"``. Differentiable in both boxes.

    Raises:
        RuntimeError: the last dimension is not 4, the shapes differ, or an option is out of its range. A box
            whose ends are in the wrong order raises nothing; on the CPU a warning says so once.

    Formula:
        1 − iou + ρ² / c² + α·v, v = 4/π² · (atan2(w_t, h_t) − atan2(w, h))², α = v / (1 − iou + v + eps) constant, with
        I the area of the intersection, U that of the union and iou = I / (U + eps), cw × ch the size of the smallest
        box that encloses both, ρ the distance of the centres, c² = cw² + ch² + eps

    Source:
        arXiv 1911.08287

    Example:
        >>> predicted = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
        >>> target = torch.tensor([[1.0, 0.0, 3.0, 3.0]])  # corners, in any unit; not centre and size
        >>> opreg.nn.CIoULoss()(predicted, target)
        tensor(0.8198)
    """

    reduction: str
    eps: float
    def __init__(self, reduction: str = "mean", eps: float = 1e-07) -> None: ...
    def forward(self, input: Tensor, target: Tensor) -> Tensor: ...

class EIoULoss(torch.nn.Module):
    """Distance-IoU with penalties for another width and another height.

    Unlike ciou_loss it has a gradient in the size where the aspect ratio is right.

    The module over ``opreg.functional.eiou_loss``.

    Args:
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        eps: ≥ 0; added to every denominator.

    Call:
        input: predicted boxes (…, 4), each x1, y1, x2, y2 with x2 ≥ x1 and y2 ≥ y1; any floating dtype.
        target: the box that each of them is to become, of the same shape; any real dtype.

    Returns:
        The loss: 0-d, or of shape (…) for ``reduction="none"``. Differentiable in both boxes.

    Raises:
        RuntimeError: the last dimension is not 4, the shapes differ, or an option is out of its range. A box
            whose ends are in the wrong order raises nothing; on the CPU a warning says so once.

    Formula:
        1 − iou + ρ² / c² + (w − w_t)² / (cw² + eps) + (h − h_t)² / (ch² + eps), with I the area of the intersection, U
        that of the union and iou = I / (U + eps), cw × ch the size of the smallest box that encloses both, ρ the
        distance of the centres, c² = cw² + ch² + eps

    Source:
        arXiv 2101.08158

    Example:
        >>> predicted = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
        >>> target = torch.tensor([[1.0, 0.0, 3.0, 3.0]])  # corners, in any unit; not centre and size
        >>> opreg.nn.EIoULoss()(predicted, target)
        tensor(0.9306)
    """

    reduction: str
    eps: float
    def __init__(self, reduction: str = "mean", eps: float = 1e-07) -> None: ...
    def forward(self, input: Tensor, target: Tensor) -> Tensor: ...

class FocalEIoULoss(torch.nn.Module):
    """Efficient IoU with the weight on the pairs that overlap well.

    Many poor boxes then don't drown the few good ones.

    The module over ``opreg.functional.focal_eiou_loss``.

    Args:
        gamma: γ ≥ 0; the greater, the more weight has a large overlap.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        eps: ≥ 0; added to every denominator.

    Call:
        input: predicted boxes (…, 4), each x1, y1, x2, y2 with x2 ≥ x1 and y2 ≥ y1; any floating dtype.
        target: the box that each of them is to become, of the same shape; any real dtype.

    Returns:
        The loss: 0-d, or of shape (…) for ``reduction="none"``. Differentiable in both boxes.

    Raises:
        RuntimeError: the last dimension is not 4, the shapes differ, or an option is out of its range. A box
            whose ends are in the wrong order raises nothing; on the CPU a warning says so once.

    Formula:
        iou^γ · eiou, iou^γ constant and eiou as in eiou_loss, with I the area of the intersection, U that of the union
        and iou = I / (U + eps)

    Source:
        arXiv 2101.08158

    Example:
        >>> predicted = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
        >>> target = torch.tensor([[1.0, 0.0, 3.0, 3.0]])  # corners, in any unit; not centre and size
        >>> opreg.nn.FocalEIoULoss()(predicted, target)
        tensor(0.4653)
    """

    gamma: float
    reduction: str
    eps: float
    def __init__(self, gamma: float = 0.5, reduction: str = "mean", eps: float = 1e-07) -> None: ...
    def forward(self, input: Tensor, target: Tensor) -> Tensor: ...

class AlphaIoULoss(torch.nn.Module):
    """1 − IoU to a power.

    α > 1 stresses the pairs that overlap well already; α < 1 those that don't.

    The module over ``opreg.functional.alpha_iou_loss``.

    Args:
        alpha: α > 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        eps: ≥ 0; added to every denominator.

    Call:
        input: predicted boxes (…, 4), each x1, y1, x2, y2 with x2 ≥ x1 and y2 ≥ y1; any floating dtype.
        target: the box that each of them is to become, of the same shape; any real dtype.

    Returns:
        The loss: 0-d, or of shape (…) for ``reduction="none"``. Differentiable in both boxes.

    Raises:
        RuntimeError: the last dimension is not 4, the shapes differ, or an option is out of its range. A box
            whose ends are in the wrong order raises nothing; on the CPU a warning says so once.

    Formula:
        1 − iou^α, with I the area of the intersection, U that of the union and iou = I / (U + eps)

    Source:
        arXiv 2110.13675

    Example:
        >>> predicted = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
        >>> target = torch.tensor([[1.0, 0.0, 3.0, 3.0]])  # corners, in any unit; not centre and size
        >>> opreg.nn.AlphaIoULoss()(predicted, target)
        tensor(0.9844)
    """

    alpha: float
    reduction: str
    eps: float
    def __init__(self, alpha: float = 3.0, reduction: str = "mean", eps: float = 1e-07) -> None: ...
    def forward(self, input: Tensor, target: Tensor) -> Tensor: ...

class SIoULoss(torch.nn.Module):
    """IoU with costs for distance, by the angle between the centres, and for shape.

    The angle lets a box move to the nearer axis of its target first.

    The module over ``opreg.functional.siou_loss``.

    Args:
        theta: θ > 0, how much a wrong shape costs; 2 to 6 in the paper.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        eps: ≥ 0; added to every denominator.

    Call:
        input: predicted boxes (…, 4), each x1, y1, x2, y2 with x2 ≥ x1 and y2 ≥ y1; any floating dtype.
        target: the box that each of them is to become, of the same shape; any real dtype.

    Returns:
        The loss: 0-d, or of shape (…) for ``reduction="none"``. Differentiable in both boxes.

    Raises:
        RuntimeError: the last dimension is not 4, the shapes differ, or an option is out of its range. A box
            whose ends are in the wrong order raises nothing; on the CPU a warning says so once.

    Formula:
        1 − iou + (Δ + Ω) / 2; Δ = 2 − e^(−γ·(dx/(cw + eps))²) − e^(−γ·(dy/(ch + eps))²), γ = 2 − Λ, Λ = 2·s·√(1 − s²),
        s = min(|dx|, |dy|) / (√(dx² + dy²) + eps); Ω = Σ over w and h of (1 − e^(−|w − w_t| / (max(w, w_t) + eps)))^θ,
        with I the area of the intersection, U that of the union and iou = I / (U + eps), cw × ch the size of the
        smallest box that encloses both, (dx, dy) the difference of the centres

    Source:
        arXiv 2205.12740

    Example:
        >>> predicted = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
        >>> target = torch.tensor([[1.0, 0.0, 3.0, 3.0]])  # corners, in any unit; not centre and size
        >>> opreg.nn.SIoULoss()(predicted, target)
        tensor(0.8320)
    """

    theta: float
    reduction: str
    eps: float
    def __init__(self, theta: float = 4.0, reduction: str = "mean", eps: float = 1e-07) -> None: ...
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

class DiceLoss(torch.nn.Module):
    """One minus the soft Dice coefficient of σ(input) and the target, all classes of a sample together.

    For segmentation with few foreground pixels: it weighs overlap, not pixels. Also known as generalized soft Dice, or
    with ``batch=True`` as batch soft Dice.

    The module over ``opreg.functional.dice_loss``.

    Args:
        p: exponent in the denominator, ≥ 1.
        smooth: added to numerator and denominator, ≥ 0.
        weight: (C,), one a class, not differentiated.
        ignore_index: pixels of this class index leave both sums.
        batch: sums over the whole batch in place of one sample: one value, whatever the reduction.
        reduction: ``"none"``, ``"mean"`` or ``"sum"`` over the samples.

    Call:
        input: logits (N, C, d1 … dk), k ≥ 0.
        target: class indices (N, d1 … dk), int64, int32 or uint8; or probabilities in [0, 1] of the shape of ``input``,
            in which the loss is then differentiable too.

    Returns:
        0-d, or (N) with reduction ``"none"`` and without ``batch``.

    Raises:
        RuntimeError: shapes that do not fit, p < 1, smooth < 0; on the CPU, a class index outside [0, C) that is not
            ignored. On a GPU such an index makes its sample NaN.

    Formula:
        1 − (2·Σ_c w_c·Σ s·y + smooth)/(Σ_c w_c·Σ (s^p + y^p) + smooth), s = σ(x), y the one-hot target; 0 where the
        fraction is 0/0, which takes smooth = 0

    Source:
        V-Net, arXiv 1606.04797 (p = 2)

    Example:
        >>> logits, target = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))  # one class index a pixel
        >>> loss = opreg.nn.DiceLoss()(logits, target)
    """

    p: float
    smooth: float
    weight: Tensor | None
    ignore_index: int
    batch: bool
    reduction: str
    def __init__(
        self,
        p: float = 1.0,
        smooth: float = 1.0,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        batch: bool = False,
        reduction: str = "mean",
    ) -> None: ...
    def forward(self, input: Tensor, target: Tensor) -> Tensor: ...

class GeneralizedDiceLoss(torch.nn.Module):
    """Dice loss of softmax(input), each class weighted by one over the square of its number of pixels in the sample.

    For classes of very different sizes: each counts about alike. A class that is absent from a sample takes the largest
    weight of the present ones; where none is present, the weights are 1. The weights depend on the target alone.

    The module over ``opreg.functional.generalized_dice_loss``.

    Args:
        eps: added to numerator and denominator, ≥ 0. The weighted sums are about 1/pixels: it counts.
        ignore_index: pixels of this class index leave all sums.
        reduction: ``"none"``, ``"mean"`` or ``"sum"`` over the samples.

    Call:
        input: logits (N, C, d1 … dk), k ≥ 0.
        target: class indices (N, d1 … dk), int64, int32 or uint8.

    Returns:
        0-d, or (N) with reduction ``"none"``.

    Raises:
        RuntimeError: shapes that do not fit, eps < 0; on the CPU, a class index outside [0, C) that is not ignored.
            On a GPU such an index makes its sample NaN.

    Formula:
        1 − (2·Σ_c w_c·Σ r·p + eps)/(Σ_c w_c·Σ (r + p) + eps), p = softmax(x), r the one-hot target, w_c = 1/(Σ r_c)²;
        0 where the fraction is 0/0, which takes eps = 0

    Source:
        Sudre et al., arXiv 1707.03237

    Example:
        >>> logits, target = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))  # one class index a pixel
        >>> loss = opreg.nn.GeneralizedDiceLoss()(logits, target)
    """

    eps: float
    ignore_index: int
    reduction: str
    def __init__(self, eps: float = 1e-05, ignore_index: int = -100, reduction: str = "mean") -> None: ...
    def forward(self, input: Tensor, target: Tensor) -> Tensor: ...

class LovaszSoftmaxLoss(torch.nn.Module):
    """The Lovász extension of the Jaccard loss (1 − IoU) on softmax(input), the mean over classes.

    Optimises mean IoU itself, of the batch or of each image; commonly after or beside cross entropy.

    The module over ``opreg.functional.lovasz_softmax_loss``.

    Args:
        classes: ``"present"``, the mean over the classes that the target holds, or ``"all"``.
        per_image: the mean over images of the loss of each, in place of that of all pixels of the batch. An image
            without valid pixels counts as 0.
        ignore_index: pixels of this class index are left out.

    Call:
        input: logits (N, C, d1 … dk), k ≥ 0.
        target: class indices (N, d1 … dk), int64, int32 or uint8.

    Returns:
        0-d; 0 where there is no valid pixel.

    Raises:
        RuntimeError: shapes that do not fit, other ``classes``; on the CPU, a class index outside [0, C) that is not
            ignored. On a GPU such an index makes the loss, and the gradient at its pixel, NaN.

    Formula:
        for each class c, the errors |1[t = c] − softmax(x)_c| of the valid pixels, sorted downwards (ties in the order
        of the pixels), times the steps that the Jaccard loss makes as pixel after pixel turns wrong, summed

    Source:
        Berman, Triki, Blaschko, arXiv 1705.08790

    Example:
        >>> logits, target = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))  # one class index a pixel
        >>> loss = opreg.nn.LovaszSoftmaxLoss(per_image=True)(logits, target)
    """

    classes: str
    per_image: bool
    ignore_index: int
    def __init__(self, classes: str = "present", per_image: bool = False, ignore_index: int = -100) -> None: ...
    def forward(self, input: Tensor, target: Tensor) -> Tensor: ...

class LovaszHingeLoss(torch.nn.Module):
    """The Lovász extension of the Jaccard loss (1 − IoU) of the foreground, on the hinge errors of binary logits.

    Optimises the IoU of one foreground class, of each image or of the batch.

    The module over ``opreg.functional.lovasz_hinge_loss``.

    Args:
        per_image: the mean over images of the loss of each, in place of that of all pixels of the batch. An image
            without valid pixels counts as 0.
        ignore_index: pixels of this value are left out.

    Call:
        input: logits (N, d1 … dk), k ≥ 0.
        target: of the shape of ``input``, of any real dtype: 1 is foreground, anything else background.

    Returns:
        0-d; 0 where there is no valid pixel.

    Raises:
        RuntimeError: shapes that do not fit.

    Formula:
        the errors 1 − x·(2y − 1), y = 1[t = 1], of the valid pixels, sorted downwards, their positive part times the
        steps that the Jaccard loss makes as pixel after pixel turns wrong, summed

    Source:
        Berman, Triki, Blaschko, arXiv 1705.08790

    Example:
        >>> logits, target = torch.randn(2, 8, 8), torch.randint(0, 2, (2, 8, 8))  # 0 or 1 a pixel
        >>> loss = opreg.nn.LovaszHingeLoss()(logits, target)
    """

    per_image: bool
    ignore_index: int
    def __init__(self, per_image: bool = True, ignore_index: int = -100) -> None: ...
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

class TripletMarginLoss(torch.nn.TripletMarginLoss):
    """Triplet margin loss: the positive is to lie nearer to the anchor than the negative does, by a margin.

    For embeddings of faces, products or patches, where classes are many and a class has few examples.

    The module over ``opreg.functional.triplet_margin_loss``.

    Args:
        margin: greater than 0.
        p: the degree of the norm, 2 for Euclidean distance; any number or infinity.
        eps: added to each difference inside of the norm.
        swap: take the negative's distance to the positive where that is less than its distance to the anchor.
        size_average: deprecated, as in torch.nn.
        reduce: deprecated, as in torch.nn.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Call:
        anchor: vectors (…, D), floating.
        positive: vectors of the anchor's class, of the same number of dimensions; they broadcast.
        negative: vectors of another class, the same.

    Returns:
        0-d, or (…) with reduction ``"none"``. The gradient of a distance is 0 where the distance is 0.

    Raises:
        RuntimeError: shapes that do not broadcast, margin ≤ 0, NaN as margin, p or eps.

    Formula:
        max(0, margin + d(a, p) − d(a, n)), d(x, y) = ‖x − y + eps‖_p

    Source:
        torch.nn.functional.triplet_margin_loss; swap: Balntas et al., BMVC 2016

    Example:
        >>> anchor, positive, negative = torch.randn(3, 16, 128)  # three times (16, 128)
        >>> loss = opreg.nn.TripletMarginLoss(margin=0.5, swap=True)(anchor, positive, negative)
    """

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor: ...

class TripletSoftMarginLoss(torch.nn.Module):
    """Triplet loss with a soft margin: the positive is to lie nearer to the anchor than the negative does.

    Like ``triplet_margin_loss`` with no margin to choose: triplets that are already in order still pull, ever less.

    The module over ``opreg.functional.triplet_soft_margin_loss``.

    Args:
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Call:
        anchor: vectors (…, D), floating.
        positive: vectors of the anchor's class, of the same shape.
        negative: vectors of another class, of the same shape.

    Returns:
        0-d, or (…) with reduction ``"none"``. The gradient of a distance is 0 where the distance is 0.

    Raises:
        RuntimeError: shapes that differ.

    Formula:
        log(1 + e^(d(a, p) − d(a, n))), d the Euclidean distance

    Source:
        Hermans et al., arXiv 1703.07737

    Example:
        >>> anchor, positive, negative = torch.randn(3, 16, 128)  # three times (16, 128)
        >>> loss = opreg.nn.TripletSoftMarginLoss()(anchor, positive, negative)
    """

    reduction: str
    def __init__(self, reduction: str = "mean") -> None: ...
    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor: ...

class CosineEmbeddingLoss(torch.nn.CosineEmbeddingLoss):
    """Cosine embedding loss: pairs that belong together are to point the same way, others not.

    For similarity of embeddings whose length means nothing.

    The module over ``opreg.functional.cosine_embedding_loss``.

    Args:
        margin: what the cosine of a pair that does not belong together may be; from −1 to 1, 0 to 0.5 is usual.
        size_average: deprecated, as in torch.nn.
        reduce: deprecated, as in torch.nn.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Call:
        input1: vectors (N, D), or one (D), floating.
        input2: the same; the two broadcast.
        target: (N), or () for one pair: 1 where the pair belongs together, −1 where it does not; others count 0.

    Returns:
        0-d, or (N) with reduction ``"none"``.

    Raises:
        RuntimeError: shapes that do not fit, NaN as margin, a target that requires grad.

    Formula:
        1 − cos where t = 1, max(0, cos − margin) where t = −1; cos = Σ x₁·x₂/√((Σ x₁² + 1e-12)·(Σ x₂² + 1e-12))

    Source:
        torch.nn.functional.cosine_embedding_loss

    Example:
        >>> target = torch.tensor([1, -1, 1])  # not 0 and 1
        >>> loss = opreg.nn.CosineEmbeddingLoss()(torch.randn(3, 128), torch.randn(3, 128), target)
    """

    def forward(self, input1: Tensor, input2: Tensor, target: Tensor) -> Tensor: ...

class OHEMCrossEntropyLoss(torch.nn.Module):
    """Cross entropy of the hard examples alone: online hard example mining.

    For dense prediction, where most positions are learnt soon and would drown the others in the mean. Which positions
    count is decided over the whole batch, without a gradient.

    The module over ``opreg.functional.ohem_cross_entropy``.

    Args:
        thresh: positions whose class has at most this probability are hard, in [0, 1].
        n_min: at least so many are kept, or all: the least probable ones, of equal ones the first. Below 0: a sixteenth
            of all positions.
        ignore_index: the target value whose positions add nothing to the loss; any integer.
        reduction: ``"none"`` (0 where a position is dropped), ``"mean"`` over the kept ones (NaN of none) or ``"sum"``.

    Call:
        input: logits, (C) or (N, C, d1 … dk).
        target: class indices in [0, C), int64, int32 or uint8; () or (N, d1 … dk).

    Returns:
        0-d, or of the shape of ``target`` with reduction ``"none"``; of the dtype of ``input``.

    Raises:
        RuntimeError: shapes or dtypes do not fit, thresh is outside of [0, 1], or on the CPU a class index is out of
            range (on a GPU its position is NaN).

    Formula:
        −log p_y, p = softmax(x), where p_y <= thresh, p_y in float32 (float64 for float64); if those are fewer than
        n_min, where p_y is among the n_min smallest

    Source:
        Shrivastava et al., arXiv 1604.03540

    Example:
        >>> logits, labels = torch.randn(8, 19, 64, 64), torch.randint(0, 19, (8, 64, 64))
        >>> loss = opreg.nn.OHEMCrossEntropyLoss(thresh=0.7, n_min=2048, ignore_index=255)(logits, labels)
    """

    thresh: float
    n_min: int
    ignore_index: int
    reduction: str
    def __init__(
        self,
        thresh: float = 0.7,
        n_min: int = -1,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None: ...
    def forward(self, input: Tensor, target: Tensor) -> Tensor: ...

class MultiMarginLoss(torch.nn.MultiMarginLoss):
    """Multi-class margin loss: the score of the target class should lead every other one by a margin.

    The hinge loss of a multi-class support vector machine: what leads by the margin has no gradient.

    The module over ``opreg.functional.multi_margin_loss``.

    Args:
        p: the power of the hinge, 1 or 2.
        margin: the lead that costs nothing.
        weight: one factor a class, of shape (C); a row takes that of its target class.
        size_average: deprecated, as in torch.nn.
        reduce: deprecated, as in torch.nn.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Call:
        input: scores of shape (C) or (N, C).
        target: class indices in [0, C) of shape () or (N), of dtype int64, int32 or uint8.

    Returns:
        0-d, or of the shape of ``target`` with reduction ``"none"``.

    Raises:
        RuntimeError: shapes that do not fit; p other than 1 and 2; on the CPU a class index outside [0, C), which gives
            NaN on a GPU.

    Formula:
        Σ_{c≠y} w_y·max(0, margin − x_y + x_c)^p/C; unlike torch's, NaN where a score is

    Source:
        torch.nn.functional.multi_margin_loss

    Example:
        >>> target = torch.tensor([2, 0])  # one class index a row
        >>> opreg.nn.MultiMarginLoss()(torch.randn(2, 5, requires_grad=True), target).backward()
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor: ...

class MultiLabelMarginLoss(torch.nn.MultiLabelMarginLoss):
    """Multi-label margin loss: the score of every target class should lead that of every other class by 1.

    For rows that have several classes at once, given as lists.

    The module over ``opreg.functional.multilabel_margin_loss``.

    Args:
        size_average: deprecated, as in torch.nn.
        reduce: deprecated, as in torch.nn.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Call:
        input: scores of shape (C) or (N, C).
        target: of the shape of ``input`` and dtype int64, int32 or uint8: each row lists its class indices in [0, C)
            and then, if there is room, −1; what follows the first −1 is ignored.

    Returns:
        0-d, or (N) with reduction ``"none"`` of (N, C).

    Raises:
        RuntimeError: shapes that do not fit; on the CPU a listed class index outside [0, C), which gives NaN on a GPU.

    Formula:
        Σ_{y listed} Σ_{c not listed} max(0, 1 − x_y + x_c)/C, a class that is listed twice counted twice; unlike
        torch's, NaN where a score is

    Source:
        torch.nn.functional.multilabel_margin_loss

    Example:
        >>> target = torch.tensor([[3, 0, -1, -1, -1], [1, -1, -1, -1, -1]])  # classes 3 and 0; class 1
        >>> opreg.nn.MultiLabelMarginLoss()(torch.randn(2, 5, requires_grad=True), target).backward()
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor: ...

class MultiLabelSoftMarginLoss(torch.nn.MultiLabelSoftMarginLoss):
    """Multi-label soft margin loss: binary cross entropy with logits of every class, averaged over the classes.

    For rows that have several classes at once, given as a 0 or 1 for each class.

    The module over ``opreg.functional.multilabel_soft_margin_loss``.

    Args:
        weight: of a shape that broadcasts with both: a factor for each class, (C), or for each logit.
        size_average: deprecated, as in torch.nn.
        reduce: deprecated, as in torch.nn.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Call:
        input: logits of shape (..., C).
        target: of a shape that broadcasts with that of ``input``, in [0, 1]: 1 for the classes of the row.

    Returns:
        0-d, or of the broadcast shape without the dimension C with reduction ``"none"``.

    Raises:
        RuntimeError: shapes that do not broadcast; an input without dimensions.

    Formula:
        −Σ_c w_c·(t_c·log σ(x_c) + (1 − t_c)·log σ(−x_c))/C

    Source:
        torch.nn.functional.multilabel_soft_margin_loss

    Example:
        >>> target = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]])  # classes 0 and 3; class 1
        >>> opreg.nn.MultiLabelSoftMarginLoss()(torch.randn(2, 4, requires_grad=True), target).backward()
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor: ...

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
        target: of a shape that broadcasts with that of ``input``; where the two differ, a warning says so once.

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
        target: of a shape that broadcasts with that of ``input``; where the two differ, a warning says so once.

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
        target: of a shape that broadcasts with that of ``input``; where the two differ, a warning says so once.

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
        target: of a shape that broadcasts with that of ``input``; where the two differ, a warning says so once.

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

class CTCLoss(torch.nn.CTCLoss):
    """Minus the log of the probability of a label sequence, over all its alignments with a longer input sequence.

    For speech and handwriting, where it is known what was said but not when. ``targets[n]`` is a sequence of labels: no
    blanks, no one-hot rows, repeated labels as they are. The gradient presumes log-probabilities, as torch's does: take
    ``log_softmax`` of logits first. There is no second derivative.

    The module over ``opreg.functional.ctc_loss``.

    Args:
        blank: the class that stands between labels.
        reduction: ``"none"``, ``"mean"`` (each loss divided by its target length, at least 1, then averaged) or
            ``"sum"``.
        zero_infinity: a loss of 0 in place of infinity, for targets that no alignment fits into the input.

    Call:
        log_probs: (T, N, C), or (T, C) for a single sequence: logarithms of probabilities over the C classes.
        targets: class indices, int64, int32 or uint8: (N, S), each row filled up with anything; or all sequences one
            after the other, (sum of target_lengths).
        input_lengths: (N), or () for a single sequence, integers in [0, T]: how many steps of each sequence count.
            For ``log_probs`` on a GPU they are there too, or on the CPU: nothing waits for them.
        target_lengths: likewise, integers in [0, S]: how many labels of each row count.

    Returns:
        0-d, or (N) with reduction ``"none"`` of several sequences.

    Raises:
        RuntimeError: shapes or dtypes that do not fit; a length or a label out of range (on a GPU its loss is NaN); a
            second derivative. Scores that are no logarithms of probabilities raise nothing; where they make a loss
            negative, a warning on the CPU says so once.

    Formula:
        −log Σ_π Π_t p_t(π_t) over all π of T classes that become the target when repetitions are merged and blanks then
        removed. The gradient in log p_t(c) is p_t(c) − P(π_t = c | target); 0 where the loss is infinite

    Source:
        torch.nn.functional.ctc_loss; Graves et al., Connectionist Temporal Classification, ICML 2006

    Example:
        >>> log_probs = torch.randn(50, 2, 28).log_softmax(-1)
        >>> targets = torch.tensor([[3, 1, 20, 0], [4, 15, 7, 19]])  # "cat", "dogs"; 0 is the blank and the filling
        >>> opreg.nn.CTCLoss()(log_probs, targets, torch.tensor([50, 41]), torch.tensor([3, 4]))
    """

    def forward(
        self,
        log_probs: Tensor,
        targets: Tensor,
        input_lengths: Tensor | Sequence[int] | int,
        target_lengths: Tensor | Sequence[int] | int,
    ) -> Tensor: ...

class DistillationLoss(torch.nn.Module):
    """Knowledge distillation: the divergence of a student's softened class probabilities from a teacher's.

    To train a small network by a large one, usually together with the cross entropy of the labels.

    The module over ``opreg.functional.distillation_loss``.

    Args:
        temperature: what both are divided by, greater than 0; the higher, the more the unlikely classes count.
        reduction: ``"none"``, ``"mean"`` (over positions) or ``"sum"``.

    Call:
        input: the student's logits (C) or (N, C, d1 … dk), floating.
        target: the teacher's logits, of the same shape; constants, no gradient flows into the teacher.

    Returns:
        0-d, or (N, d1 … dk) with reduction ``"none"``.

    Raises:
        RuntimeError: shapes that differ, a temperature that is not a finite number above 0.

    Formula:
        T²·Σ_c p_c·(log p_c − log q_c), p = softmax(t/T), q = softmax(x/T); T² keeps the size of the gradient whatever
        the temperature T

    Source:
        Hinton et al., arXiv 1503.02531

    Example:
        >>> student, teacher = torch.randn(16, 10, requires_grad=True), torch.randn(16, 10)  # logits, both
        >>> loss = opreg.nn.DistillationLoss(temperature=4.0)(student, teacher)
    """

    temperature: float
    reduction: str
    def __init__(self, temperature: float = 2.0, reduction: str = "mean") -> None: ...
    def forward(self, input: Tensor, target: Tensor) -> Tensor: ...

class LargeMarginSoftmaxLoss(torch.nn.Module):
    """Cross entropy with a large-margin regulariser: the classes beside the target are to be alike.

    For classification where classes should be told apart by a margin in the logits.

    The module over ``opreg.functional.large_margin_softmax_loss``.

    Args:
        lam: weight of the regulariser, at least 0.
        ignore_index: the target value whose positions add nothing to the loss; any integer.
        reduction: ``"none"``, ``"mean"`` (over positions that are not ignored) or ``"sum"``.

    Call:
        input: logits (C) or (N, C, d1 … dk) of at least two classes, floating.
        target: class indices () or (N, d1 … dk), int64, int32 or uint8.

    Returns:
        0-d, or (N, d1 … dk) with reduction ``"none"``.

    Raises:
        RuntimeError: shapes that do not fit, fewer than two classes, lam that is not a finite number from 0 on; on the
            CPU a class index that is none. On a GPU that position's loss and gradient are NaN.

    Formula:
        −log softmax(x)_y + λ/2·Σ_{c≠y} (q_c − 1/(C − 1))·log q_c, q = softmax of the logits without the target's

    Source:
        Kobayashi, Large Margin in Softmax Cross-Entropy Loss, BMVC 2019

    Example:
        >>> logits, target = torch.randn(16, 10, requires_grad=True), torch.randint(0, 10, (16,))  # class indices
        >>> loss = opreg.nn.LargeMarginSoftmaxLoss(lam=0.3)(logits, target)
    """

    lam: float
    ignore_index: int
    reduction: str
    def __init__(self, lam: float = 0.3, ignore_index: int = -100, reduction: str = "mean") -> None: ...
    def forward(self, input: Tensor, target: Tensor) -> Tensor: ...
