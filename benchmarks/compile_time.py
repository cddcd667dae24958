"""What share of compilation the rewrite takes: ten models, each forward and backward by torch.compile(backend="opreg").

``python benchmarks/compile_time.py`` prints, for each model, the seconds of the rewrite, those of all else, and the
share. Nothing is known of any graph before, by neither.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import opreg
from opreg.passes._rewrite import Rewriter
from opreg.passes.search.pool import forget


class Block(nn.Module):
    def __init__(self, width: int, activation: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.norm, self.act = nn.LayerNorm(width), activation
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v))
        return x + self.down(self.act(self.up(self.norm(x))))


def transformer(layers: int, activation: Any) -> nn.Module:
    return nn.Sequential(*[Block(16, activation) for _ in range(layers)], nn.Linear(16, 10))


def convolutions(layers: int, activation: nn.Module) -> nn.Module:
    parts = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), activation) for _ in range(layers)]
    return nn.Sequential(nn.Conv2d(3, 8, 1), *parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def perceptron(layers: int, activation: nn.Module) -> nn.Module:
    parts = [nn.Sequential(nn.Linear(16, 16), activation) for _ in range(layers)]
    return nn.Sequential(*parts, nn.Linear(16, 10))


def focal(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    t = F.one_hot(t, x.shape[-1]).to(x.dtype)
    bce, p = F.binary_cross_entropy_with_logits(x, t, reduction="none"), torch.sigmoid(x)
    p_t = p * t + (1 - p) * (1 - t)
    return ((0.25 * t + 0.75 * (1 - t)) * (1 - p_t) ** 2 * bce).mean()


def smoothed(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(x, t, label_smoothing=0.1)


def by_hand(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return -F.log_softmax(x, -1).gather(-1, t.unsqueeze(-1)).squeeze(-1).mean()


IMAGES, ROWS, TOKENS = (2, 3, 16, 16), (8, 16), (2, 12, 16)
MODELS: dict[str, tuple[nn.Module, tuple[int, ...], Any]] = {
    "transformer of 4, GELU": (transformer(4, F.gelu), TOKENS, F.cross_entropy),
    "transformer of 12, SiLU": (transformer(12, F.silu), TOKENS, by_hand),
    "transformer of 24, GELU": (transformer(24, F.gelu), TOKENS, smoothed),
    "transformer of 8, swish by hand": (transformer(8, lambda x: x * torch.sigmoid(x)), TOKENS, focal),
    "convolutions of 6, SiLU": (convolutions(6, nn.SiLU()), IMAGES, F.cross_entropy),
    "convolutions of 16, Mish": (convolutions(16, nn.Mish()), IMAGES, focal),
    "convolutions of 30, Hardswish": (convolutions(30, nn.Hardswish()), IMAGES, smoothed),
    "perceptron of 3, GELU": (perceptron(3, nn.GELU()), ROWS, F.cross_entropy),
    "perceptron of 20, SiLU": (perceptron(20, nn.SiLU()), ROWS, focal),
    "perceptron of 60, Mish": (perceptron(60, nn.Mish()), ROWS, by_hand),
}


def main() -> None:
    rewriting = [0.0]
    run = Rewriter.run

    def timed(self: Rewriter) -> None:
        started = time.perf_counter()
        run(self)
        rewriting[0] += time.perf_counter() - started

    Rewriter.run = timed  # type: ignore[method-assign]
    model, shape, _ = MODELS["perceptron of 3, GELU"]
    torch.compile(model, backend="opreg")(torch.randn(shape)).sum().backward()  # what both find out once
    shares, swapped = [], [0]
    opreg.on_report(lambda report, _: swapped.append(swapped.pop() + len(report.swapped)))
    with torch.compiler.config.patch(force_disable_caches=True):
        for name, (model, shape, loss) in MODELS.items():
            torch._dynamo.reset()
            forget()
            rewriting[0], swapped[0] = 0.0, 0
            x = torch.randn(shape)
            t = torch.randint(10, shape[:1] if len(shape) != 3 else shape[:2])

            def step(x: torch.Tensor, t: torch.Tensor, model: nn.Module = model, loss: Any = loss) -> torch.Tensor:
                y = model(x)
                result: torch.Tensor = loss(y.flatten(0, -2), t.flatten())
                return result

            started = time.perf_counter()
            torch.compile(step, backend="opreg")(x, t).backward()
            rest = time.perf_counter() - started - rewriting[0]
            shares.append(rewriting[0] / rest)
            print(
                f"{name:34}{rewriting[0]:8.3f} s{rest:8.2f} s{100 * shares[-1]:7.2f} %{swapped[0]:5} swapped",
                flush=True,
            )
    print(f"{'all':34}{100 * sum(shares) / len(shares):25.2f} %")


if __name__ == "__main__":
    main()
