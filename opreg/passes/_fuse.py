"""``fuse``: the rewrite of a program, of each kind that torch has."""

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import fx
from torch.export import ExportedProgram, ExportGraphSignature

from .. import _private
from ._report import Report
from ._rewrite import Rewriter
from ._rule import NearMiss, Rule
from .graph.breaks import break_after
from .modules.exchange import fuse_modules
from .rules import RULES
from .rules.registered import rules_of_others

Program = TypeVar("Program", bound="torch.nn.Module | ExportedProgram")


def fuse(
    program: Program,
    *,
    activations: bool = True,
    heads: bool = False,
    rules: Sequence[Rule | NearMiss] = (),
    example_inputs: Sequence[Any] | None = None,
) -> tuple[Program, Report]:
    """Puts ops in the place of native and hand-written losses and activations.

    The result computes the same: what can't be proven to is left, and the report says why. An op of yours that is
    registered is found by what its reference says, where that has a normal form.

    Args:
        program: a ``torch.fx.GraphModule`` (traced symbolically, by Dynamo or by ``torch.export``), an
            ``ExportedProgram``, or any other ``torch.nn.Module``: of that, modules are exchanged, and calls in the
            forward of those that can be traced.
        activations: False leaves native activations alone; those that are written out are swapped even so.
        heads: True makes one op of a linear layer and the cross entropy of its scores, where nobody else reads these:
            ``linear_cross_entropy``, which never holds them. It takes less memory, and computes in chunks of rows.
        rules: rules of your own, tried before those of opreg.
        example_inputs: for a graph without shapes and dtypes, one from ``torch.fx.symbolic_trace``: they are found by a
            run on fake tensors. Without them, tensors are taken to be of a floating dtype, and what depends on shapes
            is left.

    Returns:
        A new program of the same kind, which shares its parameters with the old one, and the report: ``swapped``,
        ``left``; ``print`` shows it.

    Raises:
        TypeError: a program of another kind.
        ValueError: a rule of your own whose pattern can't be found.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.SiLU())
        >>> fused, report = opreg.fuse(torch.export.export(model, (torch.randn(2, 3),)))
        >>> report.swapped[0].op
        'swish'
    """
    for rule in rules:
        rule.call_names  # noqa: B018  raises the error of a pattern that can't be found
    report = Report()
    every = (*rules, *RULES, *rules_of_others())
    if isinstance(program, ExportedProgram):
        return _fuse_exported(program, every, report, activations, heads), report  # type: ignore[return-value]
    if isinstance(program, fx.GraphModule):
        new = copy_sharing(program)
        if example_inputs is not None:
            propagate(new, example_inputs)
        ending = break_after(program)  # which the copy has forgotten
        Rewriter(new, every, report, activations=activations, heads=heads, ending=ending).run()
        return new, report
    if isinstance(program, torch.nn.Module):
        new_module = copy_sharing(program)
        return fuse_modules(new_module, every, report, activations), report  # type: ignore[return-value]
    raise TypeError(
        "fuse: expected a torch.nn.Module, a torch.fx.GraphModule or a torch.export.ExportedProgram, "
        f"got {type(program).__name__}"
    )


Module = TypeVar("Module", bound=torch.nn.Module)


def copy_sharing(module: Module) -> Module:
    """A copy that has the same parameters and buffers, so that an optimizer of the old module trains the new one."""
    tensors = [*module.parameters(), *module.buffers()]
    for m in module.modules():  # tensors that a graph holds, and that are no buffers
        tensors.extend(t for t in vars(m).values() if isinstance(t, torch.Tensor))
    new = copy.deepcopy(module, {id(t): t for t in tensors})
    for before, after in zip(module.modules(), new.modules(), strict=True):
        if isinstance(before, fx.GraphModule) and isinstance(after, fx.GraphModule):
            # a copied graph renames inputs that are called like a builtin; an exported program knows them by name
            for old, node in zip(before.graph.nodes, after.graph.nodes, strict=True):
                node.name = old.name
    return new


def propagate(module: fx.GraphModule, example_inputs: Sequence[Any]) -> None:
    """Notes shapes and dtypes on every node that a run on fake tensors reaches."""
    mode = _private.fake_mode()

    class Run(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            try:
                result = super().run_node(n)
            except Exception:  # its value depends on data: this node stays unknown, and all that use it
                return None
            if isinstance(result, torch.Tensor | tuple | list | int | float):
                n.meta["example_value"] = result
            return result

    with mode:
        fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in example_inputs]
        Run(module).run(*fakes)


def _fuse_exported(
    program: ExportedProgram, rules: Sequence[Rule | NearMiss], report: Report, activations: bool, heads: bool
) -> ExportedProgram:
    module = copy_sharing(program.graph_module)
    written = written_after(program.graph_signature)
    Rewriter(module, rules, report, activations=activations, heads=heads, written_after=written).run()
    return ExportedProgram(
        root=module,
        graph=module.graph,
        graph_signature=copy.deepcopy(program.graph_signature),
        state_dict=program.state_dict,
        range_constraints=copy.deepcopy(program.range_constraints),
        module_call_graph=copy.deepcopy(program.module_call_graph),
        example_inputs=program.example_inputs,
        constants=program.constants,
        verifiers=program.verifiers,
    )


def written_after(signature: ExportGraphSignature) -> set[str]:
    """The names of the inputs to which an exported program writes results of its graph, after that."""
    targets = {spec.target for spec in signature.output_specs if spec.kind.name.endswith("_MUTATION")}
    return {spec.arg.name for spec in signature.input_specs if targets & {spec.target, spec.arg.name}}
