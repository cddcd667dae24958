"""``@opreg.pointwise``, ``@opreg.row``, ``@opreg.region``: a Python function becomes an op."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..building import build
from ..faces.functions import function as face_of
from ..faces.modules import module_class
from ..op import Op
from ..registry import register
from .algebra import remade
from .declaring import pointwise_op, region_op, row_op
from .expression import ONE, Expr, Variable, replaced, tensor
from .signature import Signature
from .structs import (
    ENTROPY,
    REGION_SUMS,
    branches,
    entropy_struct,
    family,
    pointwise_struct,
    region_struct,
    row_struct,
    slopes_in_sums,
)
from .tracing import Formula

Function = Callable[..., Any]


def pointwise(
    namespace: str,
    *,
    domain: Mapping[str, str] | None = None,
    reduction: bool | None = None,
    source: str = "",
    cuda: bool | None = None,
    replace: bool = False,
) -> Callable[[Function], Function]:
    """Makes an op of a function that computes each element of its tensors by itself, ``torch.ops.NAMESPACE.NAME``.

    The function's parameters are tensors, annotated as ``Tensor`` or, where ``None`` stands for ones, as
    ``Tensor | None = None``, and options, ``float``, ``int`` or ``bool``, which may have defaults. It is run once, on
    small tensors, to see what it computes: with torch's functions of single elements, arithmetic, and for options
    those of ``math``. It may not branch on numbers; ``torch.where`` chooses, and a ``bool`` option may be branched on.
    The gradient is derived from it, kinks as torch's autograd has them. Compilation takes seconds, once a machine.

    Args:
        namespace: of the op.
        domain: of options, which numbers they may be, and of tensors, which numbers the op is tested with: ``"> 0"``,
            ``"in [0, 1)"``, by name.
        reduction: has the op the option ``reduction="mean"``, and ``dtype``, as a loss has? None: if it has several
            tensors that are not optional.
        source: the paper, for the documentation.
        cuda: as for ``opreg.build``.
        replace: take the place of an op of this name and another text.

    Returns:
        A decorator. It puts the op's function in the place of yours, with ``.op``, the ``opreg.Op``, ``.Module``, its
        class of ``torch.nn.Module``, ``.formula``, your own, and ``.library``, what ``opreg.build`` returned: a program
        without Python gives ``dlopen`` its ``path``. The op's arguments are the tensors, then the options.

    Raises:
        NotImplementedError: an operation that has no meaning for single elements. The message names it, and its line.
        TypeError, ValueError: a parameter, a default or a domain that no op can have.
        Others: as ``opreg.build`` and ``opreg.register``.

    Example:
        >>> @opreg.pointwise("mylib", domain={"eps": "> 0"})
        ... def charbonnier_loss(input: Tensor, target: Tensor, *, eps: float = 1e-3) -> Tensor:
        ...     return ((input - target) ** 2 + eps**2).sqrt()
    """

    def decorate(function: Function) -> Function:
        signature = Signature.of(function, domain or {})
        reduces = len(signature.required) > 1 if reduction is None else reduction
        if not signature.required:
            raise TypeError(f"{signature.name}: expected a parameter of type Tensor, got none")
        tensors = [a.variable for a in signature.tensors]
        text = pointwise_struct(signature, branches(signature, _traced(function, signature, tensors), tensors), reduces)
        text = family(signature, text, "PointwiseOps", "skeletons/formula.h")
        op = pointwise_op(f"{namespace}::{signature.name}", function, signature, reduces, source)
        return _made(op, function, text, cuda, replace)

    return decorate


def row(
    namespace: str,
    *,
    domain: Mapping[str, str] | None = None,
    source: str = "",
    cuda: bool | None = None,
    replace: bool = False,
) -> Callable[[Function], Function]:
    """Makes a classification loss of a function of the cross entropy of each row, and perhaps of its entropy.

    The function has one tensor, −log p of the target class, may have a second one of the name ``entropy``,
    −Σ_c p_c log p_c with p = softmax(input), and has options as those of ``pointwise``. The op has
    ``(input, target, weight=None, options, ignore_index=-100, reduction="mean")``: logits (C) or (N, C, d1 … dk), class
    indices, and the weights of the classes, by which a row's loss is multiplied. As that of ``cross_entropy``, the mean
    divides by the sum of the weights. Beside an entropy there is no ``weight``.

    Args, Returns, Raises:
        As ``pointwise``.

    Example:
        >>> @opreg.row("mylib")
        ... def poly1_loss(nll: Tensor, *, eps: float = 1.0) -> Tensor:
        ...     return nll + eps * (1 - torch.exp(-nll))
    """

    def decorate(function: Function) -> Function:
        signature = Signature.of(function, domain or {})
        names = [a.name for a in signature.tensors]
        others = [n for n in names if n != ENTROPY]
        if len(others) != 1 or len(signature.required) != len(names):
            expected = f"a tensor, the cross entropy of a row, and perhaps one of the name {ENTROPY}"
            raise TypeError(f"{signature.name}: expected {expected}, got {', '.join(names) or 'none'}")
        signature.expect_free("input", "target", "weight")
        variables = [Variable(n, 0.0) for n in (*others, ENTROPY) if n in names]
        found = branches(signature, _traced(function, signature, variables), variables)
        if ENTROPY in names:
            text = entropy_struct(signature, found, others[0])
            text = family(signature, text, "GroupOps", "skeletons/groupwise/formula.h")
        else:
            text = family(signature, row_struct(signature, found, others[0]), "RowOps", "skeletons/rowwise/formula.h")
        op = row_op(f"{namespace}::{signature.name}", function, signature, source)
        return _made(op, function, text, cuda, replace)

    return decorate


def region(
    namespace: str,
    *,
    domain: Mapping[str, str] | None = None,
    source: str = "",
    cuda: bool | None = None,
    replace: bool = False,
) -> Callable[[Function], Function]:
    """Makes a segmentation loss of a function of how the predicted and the true region of each sample overlap.

    The function has one tensor or several, by these names, and options as those of ``pointwise``. With the prediction
    s = σ(input) and the one-hot target y, each is a sum over the pixels and classes of a sample, weighted by class:
    ``tp`` and ``intersection`` are Σ s·y, ``fp`` is Σ s·(1 − y), ``fn`` Σ (1 − s)·y, ``predicted`` Σ s, ``true`` Σ y,
    ``union`` Σ (s + y − s·y). A quotient that is 0/0 where both regions are empty is NaN: the function avoids it.

    The op has ``(input, target, options, weight=None, ignore_index=-100, batch=False, reduction="mean")``, those of
    ``dice_loss``: logits (N, C, d1 … dk), class indices or probabilities, weights of classes; with ``batch`` the sums
    run over all samples.

    Args, Returns, Raises:
        As ``pointwise``; TypeError for a tensor of another name.

    Example:
        >>> @opreg.region("mylib", domain={"smooth": ">= 0"})
        ... def log_dice_loss(tp: Tensor, fp: Tensor, fn: Tensor, *, smooth: float = 1.0) -> Tensor:
        ...     return -torch.log((2 * tp + smooth) / (2 * tp + fp + fn + smooth))
    """

    def decorate(function: Function) -> Function:
        signature = Signature.of(function, domain or {})
        names = [a.name for a in signature.tensors]
        if not names or len(names) > len(signature.required) or not set(names) <= REGION_SUMS.keys():
            expected = f"tensors of the names {', '.join(REGION_SUMS)}"
            got = ", ".join(a.schema.removeprefix("Tensor ") for a in signature.tensors) or "none"
            raise TypeError(f"{signature.name}: expected {expected}, got {got}")
        signature.expect_free("input", "target", "weight", "batch")
        sums = [Variable(n, 0.0) for n in names]
        found = branches(signature, _traced(function, signature, sums), sums, partial(slopes_in_sums, names))
        text = region_struct(signature, found)
        text = family(signature, text, "RegionOps", "skeletons/regionwise/overlap.h")
        op = region_op(f"{namespace}::{signature.name}", function, signature, source)
        return _made(op, function, text, cuda, replace)

    return decorate


def emit(function: Function) -> str:
    """The C++ of an op that one of the decorators made: a header for ``opreg.build``, to take over by hand.

    Raises:
        TypeError: no decorator made it.
    """
    text = getattr(function, "text", None)
    if not isinstance(text, str) or not hasattr(function, "op"):
        raise TypeError(f"opreg.emit: expected a function that opreg.pointwise, row or region made, got {function!r}")
    return text


def _traced(function: Function, signature: Signature, tensors: list[Variable]) -> list[tuple[dict[str, bool], Expr]]:
    """What the function computes for each choice of its flags."""
    made = []
    for flags in signature.flag_choices():
        options = [a.variable for a in signature.numbers]
        value = Formula(function, tensors, options, flags).expression()
        for a in signature.tensors:
            if not a.optional:
                continue
            # the kernels read ones where a tensor is absent
            kept = [t for t in tensors if t.name != a.name]
            without = Formula(function, kept, options, {**flags, a.name: None}).expression()
            if replaced([value], {tensor(a.variable): ONE}, remade)[0] is not without:
                expected = f"a formula that without {a.name} is what it is for a {a.name} of 1"
                raise NotImplementedError(f"{signature.name}: expected {expected}, got another")
        made.append((flags, value))
    return made


def _made(op: Op, function: Function, text: str, cuda: bool | None, replace: bool) -> Function:
    """The op, compiled, registered, and as a function."""
    library = build(text, namespace=op.qualname.split("::")[0], cuda=cuda, replace=replace)
    op = register(op, replace=replace)
    face: Any = face_of(op, function.__module__)
    face.op, face.formula, face.text, face.library = op, function, text, library
    face.Module = module_class(op, function.__module__)
    return face  # type: ignore[no-any-return]
