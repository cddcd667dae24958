"""A model that exists already gets the fused ops: nothing in its code changes.

Three ways: ``opreg.fuse`` of an exported program, of the model itself, and ``torch.compile(model, backend="opreg")``.
And a rule of your own, for a formula that opreg does not know: here a swish that somebody wrote with a tanh.

    python examples/rewrite_your_model.py
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import opreg


class Detector(torch.nn.Module):
    """Somebody's model, with losses by hand and from torch."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.SiLU(inplace=True))
        self.scores = torch.nn.Conv2d(8, 5, 1)
        self.classes = torch.nn.Linear(8, 10)

    def gate(self, x: Tensor) -> Tensor:
        return x * (1 + torch.tanh(0.7 * x)) / 2

    def forward(self, image: Tensor, mask: Tensor, label: Tensor) -> Tensor:
        features = self.gate(self.body(image))
        scores = self.scores(features)
        # sigmoid focal loss
        p = scores.sigmoid()
        cross_entropy = F.binary_cross_entropy_with_logits(scores, mask, reduction="none")
        p_t = p * mask + (1 - p) * (1 - mask)
        focal = ((0.25 * mask + 0.75 * (1 - mask)) * (1 - p_t) ** 2 * cross_entropy).mean()
        # dice loss
        p, t = p.flatten(1), mask.flatten(1)
        dice = (1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)).mean()
        return focal + dice + F.nll_loss(F.log_softmax(self.classes(features.mean((2, 3))), dim=1), label)


# The rule: a pattern, a replacement of the same arguments, and when the two are the same. Tensors are positional,
# numbers keyword-only; the numbers are read from the program. Any algebraically equal spelling is found.


def tanh_gate(x: Tensor, *, slope: float) -> Tensor:
    return x * (1 + torch.tanh(slope * x)) / 2


def swish(x: Tensor, *, slope: float) -> Tensor:
    result: Tensor = torch.ops.lossreg.swish(x, 2 * slope)
    return result


def objection(arguments: Mapping[str, Any]) -> str:
    """Why the rule does not hold, or nothing. Equal for any slope; somebody may want it for positive ones alone."""
    return "" if arguments["slope"] > 0 else "the slope is not positive"


RULE = opreg.Rule("swish, written with tanh", tanh_gate, swish, objection)


def main() -> None:
    torch.manual_seed(0)
    model = Detector()
    image, label = torch.randn(4, 3, 16, 16), torch.randint(0, 10, (4,))
    mask = (torch.rand(4, 5, 16, 16) > 0.7).float()
    loss = model(image, mask, label)
    gradients = torch.autograd.grad(loss, list(model.parameters()))

    exported = torch.export.export(model, (image, mask, label))
    fused, report = opreg.fuse(exported, rules=[RULE])
    print(report)
    ops = sorted(entry.op for entry in report.swapped)
    assert ops == ["cross_entropy", "dice_loss", "focal_loss", "swish", "swish"]
    torch.testing.assert_close(fused.module()(image, mask, label), loss)

    # the model itself: its text says nothing of shapes, and the rule for the dice loss needs them
    model_with_ops, report = opreg.fuse(model, rules=[RULE])
    assert sorted(entry.op for entry in report.swapped) == ["cross_entropy", "focal_loss", "swish", "swish"]
    print(f"\n{report}")
    torch.testing.assert_close(model_with_ops(image, mask, label), loss)

    compiled = torch.compile(model, backend="opreg")  # no import of opreg needed
    got = torch.autograd.grad(compiled(image, mask, label), list(model.parameters()))
    torch.testing.assert_close(got, gradients)
    print("\nequal to the original: exported, as a module, and compiled, with gradients")


if __name__ == "__main__":
    main()
