"""Ops that write to their arguments: they return nothing and have no gradient.

What they write is declared in the schema, ``Tensor(a!)[] averages``; torch.compile and torch.export keep such a call in
its place by that. Autograd notices it too: a tensor that was saved for a backward pass counts as modified.
"""

from typing import Any

import torch
from torch.autograd.graph import increment_version

from .._private import VMAP_KEY, below_autograd, below_inplace, register_fake, transform_active
from ..meta.schema import bind
from ..op import Op
from . import sharding


def attach(op: Op, lib: torch.library.Library) -> None:
    rule = op.rule

    def fake(*args: Any, **kwargs: Any) -> None:
        rule(op.short, bind(op.value, args, kwargs))

    def update(*args: Any, **kwargs: Any) -> Any:
        if transform_active():
            op.write_reference(*args, **kwargs)
            return
        if sharding.any_sharded(args):
            return sharding.call(op, args, kwargs)
        if torch.is_grad_enabled() and any(t.requires_grad for t in op.written(*args, **kwargs)):
            raise RuntimeError(
                f"{op.short}: expected {' and '.join(op.mutated)} without gradient, for they are changed in place, "
                "got one that requires it; call under torch.no_grad()"
            )
        with below_autograd():
            op.value(*args, **kwargs)

    def noticed(*args: Any, **kwargs: Any) -> None:
        written = op.written(*args, **kwargs)
        if not written:  # empty lists: no backend to go to
            return fake(*args, **kwargs)
        with below_inplace():
            op.value(*args, **kwargs)
        increment_version([t for t in written if not t.is_inference()])

    register_fake(op.qualname, fake, lib)
    lib.impl(op.short, update, "Autograd")
    lib.impl(op.short, noticed, "ADInplaceOrView")
    lib.impl(op.short, op.write_reference, VMAP_KEY)
