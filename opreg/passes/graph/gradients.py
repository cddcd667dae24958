"""Whether a node needs a gradient, as far as a graph says: True, False, or None where it does not say."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx

from .calls import Call, value_of


def gradient_of(node: fx.Node, call: Call | None, attribute: Any, below: Sequence[bool | None]) -> bool | None:
    """The answer for a node, from its call, the module's attribute that it reads, and the answers for its inputs."""
    value = value_of(node)
    if node.op == "get_attr":
        return isinstance(attribute, Tensor) and attribute.requires_grad
    if isinstance(value, Tensor) and not differentiable(value):
        return False
    if node.op == "placeholder" or "example_value" in node.meta:
        return value.requires_grad if isinstance(value, Tensor) else None
    if call is not None and call.name in ("detach", "data", "one_hot", "argmax", "zeros_like", "ones_like"):
        return False
    if getattr(node.target, "__name__", "") == "wrap_with_set_grad_enabled" and node.args[0] is False:
        return False
    return None if node.op == "call_module" and True not in below else either(*below)


def differentiable(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def constant(node: fx.Node) -> bool:
    """Is a node no tensor that gradients flow through?"""
    value = value_of(node)
    return value is not None and not (isinstance(value, Tensor) and differentiable(value))


def either(*answers: bool | None) -> bool | None:
    """True if one of these is, else None if one is not known."""
    return True if True in answers else None if None in answers else False
