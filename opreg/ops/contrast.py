"""Contrastive losses: each vector is compared with every other one, and the matrix of comparisons is never held."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..meta import State
from ..meta.dims import VALUES, Dims, Labels
from ..meta.rules import Arguments, ShapeRule, require_indices, require_shape, require_shape_of
from ..meta.sizes import dtype_text, fail, shape_text
from ..op import ErrorSample, Flops, Op, Sample
from ..registry import register
from ..testing import Maker
from ._common import REDUCTIONS, outside, reduce, refused

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def siglip_loss(input: Tensor, target: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
    """Sigmoid loss of image and text features: for each image and each text, do the two belong together?

    For training CLIP-like models without a softmax over the batch. The (N, N) scores exist for one chunk of rows at a
    time, and the gradients are computed in the same pass.

    Args:
        input: features (N, D) of one side, as a rule of length 1: this loss does not normalise them.
        target: those of the other side, of the shape and dtype of ``input``; row i belongs to row i.
        logit_scale: 0-d, what the products are multiplied by: the exponential, where a model learns the logarithm.
        logit_bias: 0-d, what is added to them.

    Returns:
        0-d: the sum over all pairs, divided by N. NaN for N = 0.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit.

    Formula:
        −1/N·Σᵢⱼ log σ(yᵢⱼ·(s·aᵢ·bⱼ + c)), y = 1 where i = j, else −1

    Example:
        >>> images, texts = (torch.nn.functional.normalize(torch.randn(8, 64), dim=-1) for _ in range(2))
        >>> scale, bias = torch.tensor(10.0), torch.tensor(-10.0)  # exp(t), not t; both learned
        >>> loss = opreg.functional.siglip_loss(images, texts, scale, bias)
    """
    scores = logit_scale * (input @ target.t()) + logit_bias
    own = torch.eye(input.shape[0], dtype=scores.dtype, device=scores.device)
    return -F.logsigmoid((2 * own - 1) * scores).sum() / input.shape[0]


def clip_loss(input: Tensor, target: Tensor, logit_scale: Tensor, reduction: str) -> Tensor:
    """Contrastive loss of image and text features: each image is to find its text in the batch, each text its image.

    For CLIP-like models. The (N, N) scores exist for one chunk of rows at a time. They are made a second time for the
    gradients where all of them are more than one chunk, which a reduced loss does in the forward pass.

    Args:
        input: features (N, D) of one side, as a rule of length 1: this loss does not normalise them.
        target: those of the other side, of the shape and dtype of ``input``; row i belongs to row i.
        logit_scale: 0-d, what the products are multiplied by, 1/temperature: the exponential, where a model learns the
            logarithm.

    Returns:
        0-d, or one value a pair, (N), with reduction ``"none"``.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit.

    Formula:
        ½·(cross_entropy(z, i) + cross_entropy(zᵀ, i)) of pair i, z = s·A·Bᵀ

    Example:
        >>> images, texts = (torch.nn.functional.normalize(torch.randn(8, 64), dim=-1) for _ in range(2))
        >>> scale = torch.tensor(14.3)  # exp(t), not t; learned
        >>> loss = opreg.functional.clip_loss(images, texts, scale)
    """
    scores = logit_scale * (input @ target.t())
    return reduce(-0.5 * diagonal(scores.log_softmax(1) + scores.log_softmax(0)), reduction)


def nt_xent_loss(input: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Contrastive loss of two views of each image: among all others, each view is to find the other one of its image.

    For learning without labels, as SimCLR does. The (2N, 2N) scores exist for one chunk of rows at a time, in the
    forward pass and once more in the backward pass.

    Args:
        input: features (N, D) of one view of each image; they are normalised here, by x/max(‖x‖, 1e-12).
        target: those of the other view, of the shape and dtype of ``input``; row i belongs to row i.
        temperature: finite, > 0.

    Returns:
        0-d: the mean over all 2N views, NaN for N = 0. The gradient in a row of zeros is 0.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, temperature <= 0 or infinite.

    Formula:
        −log(exp(zᵢₚ)/Σ exp(zᵢⱼ), j ≠ i), z = x̂ᵢ·x̂ⱼ/temperature, p the other view of i

    Example:
        >>> first, second = torch.randn(8, 64), torch.randn(8, 64)  # two augmentations of the same eight images
        >>> loss = opreg.functional.nt_xent_loss(first, second)
    """
    log_p, _ = log_softmax_of_others(torch.cat([input, target]), temperature)
    n = input.shape[0]
    return -torch.cat([diagonal(log_p[:n, n:]), diagonal(log_p[n:, :n])]).mean()


def sup_con_loss(input: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Supervised contrastive loss: each vector is to be near those of its label, and far from the others.

    For learning features from labels; several views of an image have its label. The (N, N) scores exist for one chunk
    of rows at a time, in the forward pass and once more in the backward pass.

    Args:
        input: features (N, D); they are normalised here, by x/max(‖x‖, 1e-12).
        target: labels (N), any numbers of dtype int64, int32 or uint8.
        temperature: finite, > 0.

    Returns:
        0-d: the mean over the vectors that share their label with another one; 0 where none does. The gradient in a row
        of zeros is 0.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, temperature <= 0 or infinite.

    Formula:
        −1/|P(i)|·Σ log(exp(zᵢₚ)/Σ exp(zᵢⱼ), j ≠ i) over the p in P(i), z = x̂ᵢ·x̂ⱼ/temperature, P(i) the others of the
        label of i (L_out of the paper)

    Example:
        >>> features, labels = torch.randn(8, 64), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])  # a label a row
        >>> loss = opreg.functional.sup_con_loss(features, labels)
    """
    log_p, own = log_softmax_of_others(input, temperature)
    positive = (target.unsqueeze(1) == target.unsqueeze(0)) & ~own
    count = positive.sum(1)
    loss = -torch.where(positive, log_p, 0.0).sum(1) / count.clamp(min=1)
    return loss.sum() / (count > 0).sum().clamp(min=1)


def diagonal(x: Tensor) -> Tensor:
    """Of a square matrix. OpenVINO has no torch.diagonal."""
    return x.gather(1, torch.arange(x.shape[0], device=x.device)[:, None]).squeeze(1)


def log_softmax_of_others(x: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """For each vector the log-softmax of its scores with the others, and where its score with itself would stand."""
    square = (x * x).sum(1, keepdim=True)
    zero = square == 0
    norm = torch.where(zero, 1.0, square).sqrt().clamp(min=1e-12)
    x = torch.where(zero, 0.0, x / norm)
    scores = x @ x.t() / temperature
    own = torch.eye(x.shape[0], dtype=torch.bool, device=x.device)
    return scores.masked_fill(own, torch.finfo(scores.dtype).min).log_softmax(1), own


def pairs(*numbers: str, each: bool = False) -> ShapeRule:
    """Two sides of pairs, (N, D) each, and numbers, which are 0-d: one value in all, or ``each`` pair has its own."""

    def shape(op: str, args: Arguments) -> Sequence[int]:
        x, t = args["input"], args["target"]
        if x.dim() != 2:
            raise fail(op, "input of shape (N, D)", shape_text(x))
        if t.dtype != x.dtype:
            raise fail(op, f"target of the dtype of input, {dtype_text(x.dtype)}", dtype_text(t.dtype))
        require_shape_of(op, "target", t, "input", x)
        for name in numbers:
            if args[name].dtype not in FLOATING:
                expected = f"{name} of dtype float64, float32, bfloat16 or float16"
                raise fail(op, expected, dtype_text(args[name].dtype))
            if args[name].dim():
                raise fail(op, f"{name} of shape []", shape_text(args[name]))
        return tuple(x.shape[:1]) if each else ()

    def dims(args: Arguments) -> Dims:
        side = ("pairs", "features")
        alone: dict[str, Labels] = dict.fromkeys(numbers, ())
        return {"input": side, "target": side, **alone, VALUES: side[:1] if each else ()}

    return ShapeRule(shape, dims=dims)


def labelled() -> ShapeRule:
    """Vectors (N, D) and their labels (N): one value in all."""

    def shape(op: str, args: Arguments) -> Sequence[int]:
        x, t = args["input"], args["target"]
        if x.dim() != 2:
            raise fail(op, "input of shape (N, D)", shape_text(x))
        require_indices(op, "target", t)
        require_shape(op, "target", t, x.shape[:1], "input", x)
        return ()

    def dims(args: Arguments) -> Dims:
        return {"input": ("vectors", "features"), "target": ("vectors",), VALUES: ()}

    return ShapeRule(shape, dims=dims)


def all_pairs(args: Arguments) -> str:
    return "each vector is compared with every other one"


def number(value: Tensor | float, args: Mapping[str, Any]) -> Any:
    """A number in the place of a 0-d tensor: for ``Op.accepts``."""
    if isinstance(value, (int, float)) and isinstance(args.get("input"), Tensor):
        return torch.tensor(value, dtype=torch.float64, device=args["input"].device)
    return value


def kept_gradients(args: Arguments, numbers: int) -> Tensor:
    """The gradients in input and target that were asked for, one after the other, and those in the numbers."""
    x: Tensor = args["input"]
    in_input, in_target, *_ = map(int, args["needs_input_grad"])
    size = (in_input + in_target) * x.numel()
    if x.dtype == torch.bfloat16 and x.device.type == "cuda":  # sums of that dtype, two in the place of one
        size = (size + 1) // 2
    kept: Tensor = x.new_empty((size + numbers,), dtype=wide(x))
    return kept


def siglip_state(shape: Sequence[int], args: Arguments) -> Tensor:
    return kept_gradients(args, 2)


def clip_state(shape: Sequence[int], args: Arguments) -> Tensor:
    """Of a reduced loss its gradients; else the log-sum-exp of each row and of each column, in two numbers."""
    if clip_keeps_gradients(args):
        return kept_gradients(args, 1)
    x: Tensor = args["input"]
    kept: Tensor = x.new_empty((4 * x.shape[0],), dtype=wide(x))
    return kept


def clip_keeps_gradients(args: Arguments) -> bool:
    return args["reduction"] != "none" and any(args["needs_input_grad"])


def anchors_state(sides: int) -> State:
    """Of each vector its log-sum-exp in two numbers and its positives' share; and how many vectors have positives."""

    def state(shape: Sequence[int], args: Arguments) -> Tensor:
        x: Tensor = args["input"]
        kept: Tensor = x.new_empty((3 * sides * x.shape[0] + 1,), dtype=wide(x))
        return kept

    return state


def wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def products(args: Arguments, count: int) -> int:
    """Operations of so many products of (N, D) and (D, N), or of matrices of such sizes."""
    x = args["input"]
    operations: int = 2 * x.shape[0] * x.numel() * count
    return operations


def scores_alone(args: Arguments, result: Any) -> int:
    return products(args, 1)


def with_gradients(args: Arguments, result: Any) -> int:
    """The scores, and the gradients that are asked for."""
    return products(args, 1 + sum(args["needs_input_grad"][:2]))


def clip_forward(args: Arguments, result: Any) -> int:
    """With the gradients, where they are kept; scores that are made again, for want of room for all, do not count."""
    return with_gradients(args, result) if clip_keeps_gradients(args) else scores_alone(args, result)


def clip_backward(args: Arguments, result: Any) -> int:
    return 0 if clip_keeps_gradients(args) else with_gradients(args, result)


def vectors(make: Maker, n: int, d: int) -> tuple[Tensor, Tensor]:
    """Two sides, whose products are around 1."""
    return make.normal(n, d, scale=d**-0.25), make.normal(n, d, scale=d**-0.25)


def scores_of(sides: int, passes: int) -> Flops:
    """Of one set of vectors, so many sides: products of (V, D) and (D, V)."""

    def flops(args: Arguments, result: Any) -> int:
        return products(args, passes * sides**2)

    return flops


def extreme(make: Maker) -> tuple[Tensor, Tensor]:
    x = make.tensor([[100.0, 0.0], [-100.0, 100.0], [100.0, 100.0]])
    return x, make.tensor([[10.0, -10.0], [-10.0, 10.0], [10.0, 10.0]])


def clip_samples(make: Maker) -> Iterator[Sample]:
    for reduction in REDUCTIONS:
        yield Sample((*vectors(make, 5, 4), make.tensor(1.5)), {"reduction": reduction})
    yield Sample((*vectors(make, 3, 7), make.tensor(-0.5)))
    yield Sample((*vectors(make, 1, 3), make.tensor(1.5)), name="one pair")
    yield Sample((*vectors(make, 0, 3), make.tensor(1.5)), {"reduction": "sum"}, "empty")
    yield Sample((*extreme(make), make.tensor(5.0)), {"reduction": "none"}, "extremes", smooth=False)


def siglip_samples(make: Maker) -> Iterator[Sample]:
    numbers = make.tensor(1.5), make.tensor(-1.0)
    yield Sample((*vectors(make, 5, 4), *numbers))
    yield Sample((*vectors(make, 3, 7), make.tensor(-0.5), make.tensor(0.5)))
    yield Sample((*vectors(make, 1, 3), *numbers), name="one pair")
    yield Sample((*vectors(make, 0, 3), *numbers), name="empty", smooth=False)
    yield Sample((*extreme(make), make.tensor(5.0), make.tensor(-10.0)), name="extremes", smooth=False)


def nt_xent_samples(make: Maker) -> Iterator[Sample]:
    yield Sample((make.normal(5, 4), make.normal(5, 4)))
    yield Sample((make.normal(3, 7), make.normal(3, 7)), {"temperature": 0.2})
    yield Sample((make.normal(1, 3), make.normal(1, 3)), name="one pair")
    yield Sample((make.normal(0, 3), make.normal(0, 3)), name="empty", smooth=False)
    yield Sample((make.tensor(LENGTHS), make.normal(4, 2)), name="lengths", smooth=False)


# of no length, tiny, large, 1
LENGTHS = [[0.0, 0.0], [1e-3, -1e-3], [3e3, 4e3], [0.6, 0.8]]


def sup_con_samples(make: Maker) -> Iterator[Sample]:
    yield Sample((make.normal(6, 4), make.index(3, 6)))
    yield Sample((make.normal(7, 5), make.index(3, 7, dtype=torch.int32) - 1), {"temperature": 0.5}, "int32")
    yield Sample((make.normal(9, 3), make.index(4, 9, dtype=torch.uint8)), {"temperature": 0.5}, "uint8")
    labels = torch.tensor([-7, 3, -7, 2**40, 5], device=make.device)
    yield Sample((make.normal(5, 3), labels), {"temperature": 0.3}, "vectors without positives")
    yield Sample((make.normal(3, 2), torch.arange(3, device=make.device)), name="no positives")
    yield Sample((make.normal(1, 2), make.index(3, 1)), name="one vector")
    yield Sample((make.normal(0, 3), make.index(3, 0)), name="empty")
    equal = torch.zeros(4, dtype=torch.int64, device=make.device)
    yield Sample((make.tensor(LENGTHS), equal), {"temperature": 0.5}, "lengths", smooth=False)


def pair_errors(op: str, x: Tensor, t: Tensor, *numbers: Tensor, make: Maker, reduces: bool) -> Iterator[ErrorSample]:
    yield from refused(op, x, t, *numbers, reduces=reduces)
    yield ErrorSample((x[0], t[0], *numbers), f"{op}: expected input of shape \\(N, D\\), got \\[3\\]")
    yield ErrorSample((x[None], t[None], *numbers), f"{op}: expected input of shape \\(N, D\\), got \\[1, 4, 3\\]")
    message = f"{op}: expected target of the shape of input, got \\[4, 3\\] and"
    yield ErrorSample((x, t[:2], *numbers), f"{message} \\[2, 3\\]")
    yield ErrorSample((x, t[:, :2], *numbers), f"{message} \\[4, 2\\]")
    yield ErrorSample((x, t.float(), *numbers), f"{op}: expected target of the dtype of input, float64, got float32")
    for k, name in enumerate(("logit_scale", "logit_bias")[: len(numbers)]):
        others = list(numbers)
        others[k] = make.normal(1)
        yield ErrorSample((x, t, *others), f"{op}: expected {name} of shape \\[\\], got \\[1\\]")
        others[k] = torch.tensor(3, device=make.device)
        yield ErrorSample((x, t, *others), f"{op}: expected {name} of dtype float64, .* got int64")


def clip_errors(make: Maker) -> Iterator[ErrorSample]:
    yield from pair_errors("clip_loss", *vectors(make, 4, 3), make.normal(), make=make, reduces=True)


def siglip_errors(make: Maker) -> Iterator[ErrorSample]:
    yield from pair_errors("siglip_loss", *vectors(make, 4, 3), make.normal(), make.normal(), make=make, reduces=False)


def nt_xent_errors(make: Maker) -> Iterator[ErrorSample]:
    call = make.normal(4, 3), make.normal(4, 3)
    yield from pair_errors("nt_xent_loss", *call, make=make, reduces=False)
    yield from outside("nt_xent_loss", call, "finite temperature > 0", "temperature", 0.0, -1.0, math.inf)


def sup_con_errors(make: Maker) -> Iterator[ErrorSample]:
    op, x, t = "sup_con_loss", make.normal(4, 3), make.index(3, 4)
    yield from refused(op, x, t, reduces=False)
    yield ErrorSample((x[0], t), f"{op}: expected input of shape \\(N, D\\), got \\[3\\]")
    message = f"{op}: expected target of shape \\[4\\] for input of shape \\[4, 3\\], got"
    yield ErrorSample((x, t[:2]), f"{message} \\[2\\]")
    yield ErrorSample((x, t[:, None]), f"{message} \\[4, 1\\]")
    for wrong, dtype in ((t.bool(), "bool"), (t.double(), "float64"), (t.to(torch.int16), "int16")):
        yield ErrorSample((x, wrong), f"{op}: expected target of dtype int64, int32 or uint8, got {dtype}")
    yield from outside(op, (x, t), "finite temperature > 0", "temperature", 0.0, -1.0, math.inf)


# some models keep these as parameters of shape [1]
NO_DIMENSIONS = {f"expected {name} of shape": f"pass {name}.squeeze()" for name in ("logit_scale", "logit_bias")}

# Pairs and features; large: a batch of one GPU, huge: of a whole training run, both of ViT-B's size.
WORKLOAD = {"small": (8, 8), "usual": (512, 256), "large": (4096, 512), "huge": (32768, 768)}


def features(make: Maker, size: str) -> tuple[Tensor, Tensor]:
    n, d = WORKLOAD[size]
    return make.normal(n, d, scale=d**-0.5), make.normal(n, d, scale=d**-0.5)


def clip_workload(make: Maker, size: str) -> Iterator[Sample]:
    yield Sample((*features(make, size), make.tensor(10.0)))


def siglip_workload(make: Maker, size: str) -> Iterator[Sample]:
    yield Sample((*features(make, size), make.tensor(10.0), make.tensor(-10.0)))


def nt_xent_workload(make: Maker, size: str) -> Iterator[Sample]:
    yield Sample(features(make, size))


def sup_con_workload(make: Maker, size: str) -> Iterator[Sample]:
    x, _ = features(make, size)
    yield Sample((x, make.index(max(2, x.shape[0] // 4), x.shape[0])))  # about four of a label


register(
    Op(
        "clip_loss",
        reference=clip_loss,
        shape=pairs("logit_scale", each=True),
        samples=clip_samples,
        errors=clip_errors,
        source="Radford et al., Learning transferable visual models from language supervision, arXiv 2103.00020",
        state=clip_state,
        whole=all_pairs,
        module="CLIPLoss",
        accepts={"logit_scale": number},
        advice=NO_DIMENSIONS,
        lowered=("input", "target"),
        workload=clip_workload,
        flops={"": scores_alone, "_forward": clip_forward, "_backward": clip_backward},
    )
)
register(
    Op(
        "siglip_loss",
        reference=siglip_loss,
        shape=pairs("logit_scale", "logit_bias"),
        samples=siglip_samples,
        errors=siglip_errors,
        source="Zhai et al., Sigmoid loss for language image pre-training, arXiv 2303.15343",
        state=siglip_state,
        whole=all_pairs,
        module="SigLipLoss",
        accepts={"logit_scale": number, "logit_bias": number},
        advice=NO_DIMENSIONS,
        lowered=("input", "target"),
        workload=siglip_workload,
        flops={"": scores_alone, "_forward": with_gradients},
    )
)
register(
    Op(
        "nt_xent_loss",
        reference=nt_xent_loss,
        shape=pairs(),
        samples=nt_xent_samples,
        errors=nt_xent_errors,
        source="Chen et al., A simple framework for contrastive learning of visual representations, arXiv 2002.05709",
        state=anchors_state(2),
        whole=all_pairs,
        module="NTXentLoss",
        lowered=("input", "target"),
        workload=nt_xent_workload,
        flops={"": scores_of(2, 1), "_forward": scores_of(2, 1), "_backward": scores_of(2, 2)},
    )
)
register(
    Op(
        "sup_con_loss",
        reference=sup_con_loss,
        shape=labelled(),
        samples=sup_con_samples,
        errors=sup_con_errors,
        source="Khosla et al., Supervised contrastive learning, arXiv 2004.11362",
        indices=("target",),
        state=anchors_state(1),
        whole=all_pairs,
        module="SupConLoss",
        lowered=("input",),
        workload=sup_con_workload,
        flops={"": scores_of(1, 1), "_forward": scores_of(1, 1), "_backward": scores_of(1, 2)},
    )
)
