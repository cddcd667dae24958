"""Losses of images against images: one value an image."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import meta
from ..op import ErrorSample, Op, Sample
from ..registry import register
from ..testing import Maker
from ._common import REDUCTIONS, outside, reduce, refused


def blurred(planes: Tensor, weight: Tensor) -> Tensor:
    """Planes (P, 1, H, W), each averaged over the windows that fit."""
    return F.conv2d(F.conv2d(planes, weight.view(1, 1, -1, 1)), weight.view(1, 1, 1, -1))


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """0 at 0/0, which constants of 0 allow."""
    nothing = denominator == 0
    return torch.where(nothing, 0.0, numerator / torch.where(nothing, 1.0, denominator))


def ssim_loss(
    input: Tensor,
    target: Tensor,
    window_size: int,
    sigma: float,
    data_range: float,
    k1: float,
    k2: float,
    reduction: str,
) -> Tensor:
    """One minus the structural similarity of two images, averaged over all windows and channels.

    For restoration, compression and reconstruction, where it compares local means, contrasts and structures, as an eye
    does, and not pixels. Often added to ``l1_loss``.

    Args:
        input: images (N, C, H, W), C ≥ 1; any floating dtype.
        target: the images that they are to become, of the same shape; any real dtype.
        window_size: side of the Gaussian window, odd, at most H and W. Windows are those that fit: no padding.
        sigma: standard deviation of the window in pixels, > 0.
        data_range: the distance from the smallest possible value of a pixel to the largest, > 0: 1.0 for images in
            [0, 1], 2.0 for [−1, 1], 255.0 for bytes.
        k1: ≥ 0, for the constant beside the means.
        k2: ≥ 0, for the constant beside the variances.
        reduction: ``"none"``, ``"mean"`` or ``"sum"`` over the images.

    Returns:
        In [0, 2], 0 for equal images: 0-d, or (N) with reduction ``"none"``. Differentiable in both images.

    Raises:
        RuntimeError: shapes that do not fit, no channel, a window that is even or larger than the image, an option out
            of its range.

    Formula:
        1 − mean of (2·μ_x·μ_y + c₁)·(2·σ_xy + c₂)/((μ_x² + μ_y² + c₁)·(σ_x² + σ_y² + c₂)), μ and σ the weighted means
        and (biased) variances in a window, c₁ = (k1·data_range)², c₂ = (k2·data_range)²; a factor of 0/0, which takes
        k1 = 0 or k2 = 0, is 1

    Example:
        >>> images, target = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)  # in [0, 1]: data_range is 1
        >>> loss = opreg.functional.ssim_loss(images, target)
    """
    place = torch.arange(window_size, dtype=torch.float64, device=input.device) - window_size // 2
    weight = torch.exp(-0.5 * (place / sigma) ** 2)
    weight = (weight / weight.sum()).to(input.dtype)
    x, y = (t.reshape(-1, 1, *t.shape[2:]) for t in (input, target))
    mean_x, mean_y, mean_difference = (blurred(t, weight) for t in (x, y, x - y))

    def variance(t: Tensor, mean: Tensor) -> Tensor:
        return blurred(t * t, weight) - mean * mean

    # 1 − (2·a·b + c)/(a² + b² + c) is (a − b)²/(a² + b² + c): no digits are lost where the images are alike
    means = ratio(mean_difference**2, mean_x**2 + mean_y**2 + (k1 * data_range) ** 2)
    variances = variance(x, mean_x) + variance(y, mean_y) + (k2 * data_range) ** 2
    structure = ratio(variance(x - y, mean_difference), variances)
    loss = means + structure - means * structure
    return reduce(loss.view(input.shape[0], -1).mean(1) if input.shape[0] else loss.view(0, 1).sum(1), reduction)


def images(make: Maker, *shape: int, high: float = 1.0) -> tuple[Tensor, Tensor]:
    return make.uniform(*shape, high=high), make.uniform(*shape, high=high)


def samples(make: Maker) -> Iterator[Sample]:
    for reduction in REDUCTIONS:
        yield Sample(images(make, 2, 2, 4, 5), {"window_size": 3, "reduction": reduction})
    yield Sample(images(make, 1, 1, 3, 4), {"window_size": 1, "sigma": 0.5}, "single pixels")
    chosen = {"window_size": 5, "sigma": 1.0, "data_range": 2.0, "k1": 0.1, "k2": 0.2}
    yield Sample(images(make, 2, 1, 6, 5), chosen, "options")
    yield Sample(images(make, 2, 3, 13, 17), {"reduction": "none"}, "default window")
    yield Sample(images(make, 1, 1, 19, 140), {"reduction": "none"}, "several strips")
    yield Sample(images(make, 0, 2, 4, 5), {"window_size": 3}, "empty batch", smooth=False)
    yield Sample(images(make, 0, 2, 4, 5), {"window_size": 3, "reduction": "sum"}, "empty batch")
    x, y = images(make, 2, 1, 5, 5, high=255.0)
    yield Sample((x, y), {"window_size": 3, "data_range": 255.0, "reduction": "none"}, "bytes")
    flat = torch.zeros(1, 1, 5, 5, device=make.device)
    pair = (make.tensor(flat.tolist()), make.tensor(flat.tolist()))
    yield Sample(pair, {"window_size": 3, "k1": 0.0, "k2": 0.0}, "nothing, without constants", smooth=False)
    x, y = images(make, 1, 2, 5, 6, high=1e4)
    yield Sample((x, y), {"window_size": 3, "data_range": 1e4, "reduction": "none"}, "extremes", smooth=False)


def errors(make: Maker) -> Iterator[ErrorSample]:
    op = "ssim_loss"
    x, y = images(make, 2, 3, 11, 12)
    yield from refused(op, x, y)
    yield ErrorSample((x[0], y), f"{op}: expected input of shape \\(N, C, H, W\\), got \\[3, 11, 12\\]")
    yield ErrorSample((x[:, :0], y), f"{op}: expected input of at least one channel, got \\[2, 0, 11, 12\\]")
    message = f"{op}: expected target of the shape of input, got \\[2, 3, 11, 12\\] and \\[1, 3, 11, 12\\]"
    yield ErrorSample((x, y[:1]), message)
    for size in (2, 0, -1):
        message = f"{op}: expected an odd window_size of at least 1, got {size}"
        yield ErrorSample((x, y), message, {"window_size": size})
    message = f"{op}: expected window_size of at most the height and the width of input, \\[11, 12\\], got 13"
    yield ErrorSample((x, y), message, {"window_size": 13, "sigma": 2.0})
    for option in ("sigma", "data_range"):
        yield from outside(op, (x, y), f"finite {option} > 0", option, 0.0, -1.0, math.inf)
    for option in ("k1", "k2"):
        yield from outside(op, (x, y), f"finite {option} >= 0", option, -0.01, math.inf)


def filters(args: Mapping[str, Any], maps: int) -> int:
    """Operations of so many maps of the windows' weighted means, down the columns and along the rows."""
    x, size = args["input"], args["window_size"]
    rows, columns = x.shape[2] - size + 1, x.shape[3] - size + 1
    places = x.shape[0] * x.shape[1] * rows * (x.shape[3] + columns)
    operations: int = 2 * maps * size * places
    return operations


def flops(args: Mapping[str, Any], result: Tensor) -> int:
    """Of three means and three variances."""
    return filters(args, 6)


def backward_flops(args: Mapping[str, Any], result: Any) -> int:
    """Of the same again, and of four maps of slopes."""
    return filters(args, 10)


# (N, C, H, W)
IMAGES = {"small": (1, 1, 8, 8), "usual": (4, 3, 128, 128), "large": (8, 3, 512, 512), "huge": (16, 3, 1024, 1024)}


def workload(make: Maker, size: str) -> Iterator[Sample]:
    window = {"window_size": 7} if size == "small" else {}
    yield Sample(images(make, *IMAGES[size]), window)


register(
    Op(
        "ssim_loss",
        reference=ssim_loss,
        shape=meta.image_pairs("input", "target", window_size="window_size"),
        samples=samples,
        errors=errors,
        source="Wang et al., Image quality assessment: from error visibility to structural similarity, IEEE TIP 2004",
        module="SSIMLoss",
        flops={"": flops, "_backward": backward_flops},
        workload=workload,
    )
)
