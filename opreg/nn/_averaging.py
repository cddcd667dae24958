"""The exponential moving average of a model's weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .._library import OPS
from ..messages.words import require_number, said
from ._wide_buffers import wide


class EMA:
    """Exponential moving average of a model's parameters: smoother weights than the last, often better ones.

    ``update()`` after each optimizer step; ``averaged()`` around an evaluation, or ``apply()`` before it and
    ``restore()`` after. All tensors are averaged in one call of ``ema_update_``. Early updates forget faster,
    so that the start is not remembered. Averages of bfloat16 and float16 parameters are float32: in their own dtype a
    thousandth of a difference would be rounded away.

    Args:
        model: holds the parameters; they are read at each update and written by ``apply`` and ``restore``.
        alpha: the decay that is reached in the end, in [0, 1].
        average_buffers: whether buffers are averaged as well; else they are copied at each update. Those that hold
            integers are copied in any case.

    Raises:
        ValueError: alpha out of range; at an update, averages that do not fit the model any more.
        RuntimeError: an update, or a second ``apply``, between ``apply`` and ``restore``; a ``restore`` before.

    Formula:
        average ← decay · average + (1 − decay) · parameter, decay = min(alpha, (step + 1)/(step + 10))

    Source:
        torch.optim.swa_utils and TensorFlow's ExponentialMovingAverage, whose warm-up this is

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> ema = opreg.nn.EMA(model)
        >>> ema.update()  # after optimizer.step()
        >>> with ema.averaged():
        ...     scores = model(torch.randn(3, 4))
    """

    def __init__(self, model: torch.nn.Module, alpha: float = 0.999, average_buffers: bool = False) -> None:
        if not isinstance(model, torch.nn.Module):
            raise ValueError(f"EMA: expected model to be a torch.nn.Module, got {said(model)}")
        require_number("EMA", "alpha", alpha)
        if not 0 <= alpha <= 1:
            raise ValueError(f"EMA: expected alpha in [0, 1], got {alpha}")
        self.model, self.alpha, self.average_buffers = model, alpha, average_buffers
        self.step = 0
        self.averages = {name: t.detach().to(wide(t.dtype), copy=True) for name, t in self._live().items()}
        self._kept: dict[str, Tensor] | None = None

    def _live(self) -> dict[str, Tensor]:
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}

    @property
    def decay(self) -> float:
        """The decay of the next update."""
        return min(self.alpha, (self.step + 1) / (self.step + 10))

    @torch.no_grad()
    def update(self) -> None:
        """Takes the model's weights into the averages."""
        if self._kept is not None:
            raise RuntimeError("EMA: expected restore() before update(), got a model that holds the averages")
        live = self._live()
        if live.keys() != self.averages.keys():
            names = sorted(live.keys() ^ self.averages.keys())
            raise ValueError(f"EMA: expected the model's tensors to stay those it had, got a difference in {names}")
        copied = () if self.average_buffers else {name for name, _ in self.model.named_buffers()}
        averaged = [name for name in live if name not in copied]
        OPS.ema_update_(
            [self.averages[n] for n in averaged], [live[n].to(self.averages[n].dtype) for n in averaged], self.decay
        )
        for name in copied:
            self.averages[name].copy_(live[name])
        self.step += 1

    @torch.no_grad()
    def apply(self) -> None:
        """Puts the averages into the model; its own weights are kept for ``restore``."""
        if self._kept is not None:
            raise RuntimeError("EMA: expected restore() before another apply()")
        live = self._live()
        self._kept = {name: t.detach().clone() for name, t in live.items()}
        _copy(self.averages, live)

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the model's own weights back."""
        if self._kept is None:
            raise RuntimeError("EMA: expected apply() before restore()")
        _copy(self._kept, self._live())
        self._kept = None

    @contextmanager
    def averaged(self) -> Iterator[torch.nn.Module]:
        """The model with the averages, for the time of a ``with`` block."""
        self.apply()
        try:
            yield self.model
        finally:
            self.restore()

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "averages": dict(self.averages)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["averages"].keys() != self.averages.keys():
            names = sorted(state["averages"].keys() ^ self.averages.keys())
            raise ValueError(f"EMA: expected a state of this model, got a difference in {names}")
        _copy(state["averages"], self.averages)
        self.step = state["step"]

    def __repr__(self) -> str:
        return f"EMA(alpha={self.alpha}, average_buffers={self.average_buffers}, step={self.step})"


def _copy(source: dict[str, Tensor], destination: dict[str, Tensor]) -> None:
    for name, t in destination.items():
        t.copy_(source[name])
