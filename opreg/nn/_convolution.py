"""Convolutions that know where they are, and convolutions that look at what they see."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .._library import OPS
from ..messages.checks import check_options
from ..messages.words import require_number, require_sizes, require_tensor
from ..registry import get
from ._wide_buffers import WideBuffers, wide

Pair = int | tuple[int, int]


class CoordConv2d(torch.nn.Conv2d):
    """A convolution that sees each pixel's row and column, from −1 to 1, as two more channels.

    For tasks in which the place matters: boxes, key points, coordinates as outputs. The coordinates are not written
    beside each sample, but for a ``padding_mode`` other than ``"zeros"`` and for a padding that is not the same on
    both sides.

    Args:
        in_channels: channels of the input, without the two of the coordinates.
        out_channels: channels of the result.
        kernel_size: one, or (height, width).
        stride: one, or (vertical, horizontal).
        padding: one, or (vertical, horizontal), or ``"same"`` or ``"valid"``.
        dilation: one, or (vertical, horizontal).
        groups: divides in_channels + 2 and out_channels; the rows' channel is the first, the columns' the second.
        bias: whether there is one.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``; of the coordinates too.
        device: of the weight.
        dtype: of the weight.

    Call:
        input: (N, in_channels, H, W) or (in_channels, H, W).

    Returns:
        (N, out_channels, H', W') or (out_channels, H', W').

    Raises:
        ValueError: those of ``torch.nn.Conv2d``.
        RuntimeError: those of ``opreg.functional.coord_conv2d``.

    Formula:
        conv2d(cat(rows, columns, input), weight), weight (out_channels, (in_channels + 2)/groups, kh, kw)

    Source:
        arXiv 1807.03247

    Example:
        >>> layer = opreg.nn.CoordConv2d(3, 8, kernel_size=3, padding=1)
        >>> layer(torch.randn(2, 3, 16, 16)).shape
        torch.Size([2, 8, 16, 16])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: str | Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_geometry(
            "CoordConv2d", "coord_conv2d", in_channels, out_channels, kernel_size, stride, padding, dilation, groups
        )
        super().__init__(
            in_channels + 2, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype,  # type: ignore[arg-type]
        )  # fmt: skip
        self.in_channels = in_channels

    def forward(self, input: Tensor) -> Tensor:
        require_tensor("CoordConv2d", "input", input)
        top, bottom, left, right = padded_sides(self.padding, self.kernel_size, self.dilation)
        if self.padding_mode != "zeros" or top != bottom or left != right:
            padded: Tensor = self._conv_forward(with_coordinates(input), self.weight, self.bias)
            return padded
        result: Tensor = OPS.coord_conv2d(
            input, self.weight, self.bias, self.stride, (top, left), self.dilation, self.groups
        )
        return result


class DynamicConv2d(WideBuffers):
    """A convolution whose kernel is a mixture of several, weighted by attention to the sample: more capacity for
    little more work.

    Attention is softmax(logits / temperature), the logits from the input's mean over all pixels through two linear
    layers. At the start a high temperature lets all kernels learn: call ``anneal()`` after each epoch, it goes down
    to 1. The temperature is a buffer, part of the state dict, and float32 at least, whatever the module's dtype.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the result.
        kernel_size: one, or (height, width).
        stride: one, or (vertical, horizontal).
        padding: one, or (vertical, horizontal), or ``"same"`` or ``"valid"``.
        dilation: one, or (vertical, horizontal).
        groups: divides in_channels and out_channels.
        bias: whether each kernel has one.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        device: of the parameters.
        dtype: of the parameters.
        num_kernels: K, how many are mixed.
        reduction: in_channels / reduction is the width of the attention's hidden layer.
        temperature: at the start; >= 1.
        anneal_epochs: how many calls of ``anneal`` it takes to come down to 1, in equal steps.

    Call:
        input: (N, in_channels, H, W) or (in_channels, H, W).

    Returns:
        (N, out_channels, H', W') or (out_channels, H', W').

    Raises:
        ValueError: those of ``torch.nn.Conv2d``; num_kernels, reduction or anneal_epochs < 1, temperature < 1.
        RuntimeError: those of ``opreg.functional.dynamic_conv2d``.

    Formula:
        conv2d(input, Σ_k π_k W_k) + Σ_k π_k b_k, π = attention of the sample; W (K, out_channels,
        in_channels/groups, kh, kw), b (K, out_channels)

    Source:
        arXiv 1912.03458

    Example:
        >>> layer = opreg.nn.DynamicConv2d(3, 8, kernel_size=3, padding=1)
        >>> layer(torch.randn(2, 3, 16, 16)).shape
        torch.Size([2, 8, 16, 16])
        >>> layer.anneal()  # at the end of an epoch
    """

    wide_buffers = ("temperature",)
    temperature: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: str | Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        num_kernels: int = 4,
        reduction: int = 4,
        temperature: float = 30.0,
        anneal_epochs: int = 10,
    ) -> None:
        super().__init__()
        for name, value in (
            ("num_kernels", num_kernels), ("reduction", reduction), ("temperature", temperature),
            ("anneal_epochs", anneal_epochs),
        ):  # fmt: skip
            require_number("DynamicConv2d", name, value)
            if not value >= 1:
                raise ValueError(f"DynamicConv2d: expected {name} >= 1, got {value}")
        check_geometry(
            "DynamicConv2d", "dynamic_conv2d", in_channels, out_channels, kernel_size, stride, padding, dilation, groups
        )
        # one of the K kernels, without memory, checks the arguments and works out the geometry
        conv = torch.nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device="meta",  # type: ignore[arg-type]
        )  # fmt: skip
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        self.padding, self.padding_mode = conv.padding, padding_mode
        hidden = max(1, in_channels // reduction)
        self.attention = torch.nn.Sequential(
            torch.nn.Linear(in_channels, hidden, device=device, dtype=dtype),
            torch.nn.ReLU(),
            torch.nn.Linear(hidden, num_kernels, device=device, dtype=dtype),
        )
        self.weight = torch.nn.Parameter(torch.empty(num_kernels, *conv.weight.shape, device=device, dtype=dtype))
        self.bias = (
            torch.nn.Parameter(torch.empty(num_kernels, out_channels, device=device, dtype=dtype)) if bias else None
        )
        self.register_buffer(
            "temperature", torch.tensor(float(temperature), device=device, dtype=wide(torch.get_default_dtype()))
        )
        self.anneal_step = (temperature - 1) / anneal_epochs
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Each kernel as ``torch.nn.Conv2d`` initialises its own."""
        bound = 1 / math.sqrt(max(1, self.weight[0, 0].numel()))
        for t in (self.weight, self.bias):
            if t is not None:
                torch.nn.init.uniform_(t, -bound, bound)

    @torch.no_grad()
    def anneal(self) -> None:
        """One epoch nearer to a temperature of 1."""
        self.temperature.sub_(self.anneal_step).clamp_(min=1)

    def forward(self, input: Tensor) -> Tensor:
        require_tensor("DynamicConv2d", "input", input)
        batch = input if input.dim() == 4 else input.unsqueeze(0)
        logits = self.attention(batch.mean((-2, -1)))
        attention = torch.softmax(logits / self.temperature.to(logits.dtype), -1)
        top, bottom, left, right = padded_sides(self.padding, self.kernel_size, self.dilation)
        padding = (top, left)
        if self.padding_mode != "zeros" or top != bottom or left != right:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            batch, padding = F.pad(batch, (left, right, top, bottom), mode), (0, 0)
        result: Tensor = OPS.dynamic_conv2d(
            batch, attention, self.weight, self.bias, self.stride, padding, self.dilation, self.groups
        )
        return result if input.dim() == 4 else result.squeeze(0)

    def extra_repr(self) -> str:
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
        options = ", ".join(f"{n}={getattr(self, n)}" for n in names)
        return f"{options}, bias={self.bias is not None}, num_kernels={self.weight.shape[0]}"


def check_geometry(
    caller: str,
    op: str,
    in_channels: int,
    out_channels: int,
    kernel_size: Pair,
    stride: Pair,
    padding: str | Pair,
    dilation: Pair,
    groups: int,
) -> None:
    """What torch.nn.Conv2d leaves to the first call."""
    sizes = kernel_size if isinstance(kernel_size, (tuple, list)) else (kernel_size,)
    require_sizes(caller, in_channels=in_channels, out_channels=out_channels, groups=groups)
    for size in sizes:
        require_sizes(caller, kernel_size=size)
    options = {"stride": stride, "dilation": dilation, "groups": groups}
    if not isinstance(padding, str):
        options["padding"] = padding
    check_options(get(op), options)


def padded_sides(
    padding: str | tuple[int, ...], kernel_size: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[int, int, int, int]:
    """What a convolution pads: top, bottom, left, right."""
    if padding == "same":
        vertical, horizontal = (d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True))
        return vertical // 2, vertical - vertical // 2, horizontal // 2, horizontal - horizontal // 2
    if isinstance(padding, str):
        return 0, 0, 0, 0
    return padding[0], padding[0], padding[1], padding[1]


def with_coordinates(input: Tensor) -> Tensor:
    """cat(rows, columns, input) over the channels."""
    height, width = input.shape[-2:]
    options = {"dtype": input.dtype, "device": input.device}
    rows = torch.linspace(-1, 1, height, **options).unsqueeze(-1)  # type: ignore[call-overload]
    columns = torch.linspace(-1, 1, width, **options)  # type: ignore[call-overload]
    planes = [t.expand(*input.shape[:-3], 1, height, width) for t in (rows, columns)]
    return torch.cat([*planes, input], -3)
