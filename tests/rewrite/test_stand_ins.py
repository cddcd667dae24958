"""Modules that ``opreg.fuse`` exchanges before any input is seen compute whatever torch's own computed."""

import copy
import inspect
import pickle
import warnings

import pytest
import torch
from torch import Tensor, nn

import opreg

X, Y, T = torch.randn(5, 4), torch.rand(5, 4) * 0.8 + 0.1, torch.randint(0, 4, (5,))
SIGNS, LENGTHS = torch.randint(0, 2, (5, 4)) * 2.0 - 1, torch.tensor([2, 2])
ARGUMENTS: dict[type[nn.Module], tuple[Tensor, ...]] = {
    nn.NLLLoss: (X.log_softmax(1), T), nn.CrossEntropyLoss: (X, T), nn.MultiMarginLoss: (X, T),
    nn.BCELoss: (X.sigmoid(), Y), nn.BCEWithLogitsLoss: (X, Y), nn.KLDivLoss: (X.log_softmax(1), Y),
    nn.GaussianNLLLoss: (X, Y, Y + 0.1), nn.PoissonNLLLoss: (X.abs() + 0.1, Y),
    nn.MarginRankingLoss: (X, Y, SIGNS), nn.HingeEmbeddingLoss: (X, SIGNS), nn.SoftMarginLoss: (X, SIGNS),
    nn.CosineEmbeddingLoss: (X, Y, SIGNS[:, 0]), nn.TripletMarginLoss: (X, Y, -X),
    nn.MultiLabelMarginLoss: (X, T.unsqueeze(1).expand(5, 4).contiguous()),
    nn.MultiLabelSoftMarginLoss: (X, Y.round()), nn.L1Loss: (X, Y), nn.MSELoss: (X, Y), nn.SmoothL1Loss: (X, Y),
    nn.HuberLoss: (X, Y), nn.SiLU: (X,), nn.Mish: (X,), nn.GELU: (X,), nn.Hardswish: (X,),
    nn.CTCLoss: (torch.randn(6, 2, 4).log_softmax(2), torch.tensor([[2, 3], [3, 2]]), LENGTHS * 3, LENGTHS),
}  # fmt: skip


def test_every_exchanged_module_is_here():
    constructed = []
    for kind in vars(nn).values():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of deprecated ones
                constructed.append(kind())
        except Exception:  # no module, or one that wants arguments
            continue
    exchanged = {type(m) for m in constructed if isinstance(m, nn.Module) and opreg.fuse(m)[1].swapped}
    assert {k for k in exchanged if k.__name__ != "NLLLoss2d"} == {*ARGUMENTS}  # the old name of NLLLoss


def variants(arguments):
    """Calls by what they ask: the arguments, and which of them require grad."""
    floating = [i for i, a in enumerate(arguments) if a.is_floating_point()]
    yield "as they are", arguments, floating[:1]
    yield "all require grad", arguments, floating
    yield "transposed", [a.mT.contiguous().mT if a.dim() > 1 else a for a in arguments], [0]
    yield "empty", [a[:0] for a in arguments], [0]
    for i, a in enumerate(arguments):

        def given(other, i=i):
            return [*arguments[:i], other, *arguments[i + 1 :]]

        others = [torch.float64, torch.bfloat16, torch.int64, torch.int32, torch.bool, torch.complex64]
        yield from ((f"argument {i} of {d}", given(a.to(d)), []) for d in others if d != a.dtype)
        if i in floating:
            yield f"argument {i} requires grad", arguments, [i]
        if a.dim() > 1:
            yield f"argument {i} transposed", given(a.mT.contiguous().mT), [0]
            yield f"argument {i} of one row", given(a[:1]), [0]
            yield f"argument {i} sparse", given(a.to_sparse()), []
            yield f"argument {i} nested", given(torch.nested.nested_tensor([*a], layout=torch.jagged)), []
    for dtype in (torch.float64, torch.float16, torch.int64, torch.complex64):
        yield f"all of {dtype}", [a.to(dtype) if a.is_floating_point() else a for a in arguments], [0]


def called(module, arguments, requiring):
    """The result and its gradients; the error where there is none."""
    given = [a.detach().requires_grad_(i in requiring and a.dtype.is_floating_point) for i, a in enumerate(arguments)]
    try:
        result = module(*given)
        if not result.requires_grad or result.is_nested:
            return result, ()
        gradients = torch.autograd.grad(result.sum(), [a for a in given if a.requires_grad], allow_unused=True)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        return error, ()
    return result, [torch.zeros(()) if g is None or not g.any() else g for g in gradients]


def compare(fused, module, arguments, requiring):
    (want, gradients), (got, ours) = called(module, arguments, requiring), called(fused, arguments, requiring)
    if isinstance(want, Exception):  # the op may take what torch does not
        return
    assert not isinstance(got, Exception), got
    if want.is_nested:
        want, got = want.values(), got.values()
    unwritten = isinstance(module, nn.MultiMarginLoss | nn.MultiLabelMarginLoss)  # torch's mean of no rows
    if want.is_sparse or (unwritten and not arguments[0].numel()):
        return
    half = any(a.dtype in (torch.bfloat16, torch.float16) for a in arguments) or torch.is_autocast_enabled("cpu")
    options = {"rtol": 2e-2 if half else 1e-4, "atol": 2e-2 if half else 1e-5, "equal_nan": True}
    torch.testing.assert_close(got, want, check_stride=want.numel() > 0, **options)
    torch.testing.assert_close(ours, gradients, **options)


def with_options(*options):
    """Every kind of module with each of the options that it has."""
    pairs = [(k, o) for k in ARGUMENTS for o in options if o.split("=")[0] in inspect.signature(k).parameters]
    return [pytest.param(kind, option, id=f"{kind.__name__}-{option}") for kind, option in pairs]


@pytest.mark.parametrize(
    ("kind", "option"), with_options("reduction=mean", "reduction=sum", "reduction=none", "inplace", "approximate")
)
def test_what_torch_computes(kind, option):
    name, _, value = option.partition("=")
    module = kind(**({name: value} if value else {}))
    fused, report = opreg.fuse(module)
    assert report.swapped
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for what, arguments, requiring in variants(ARGUMENTS[kind]):
            try:
                compare(fused, module, arguments, requiring)
            except AssertionError as error:
                raise AssertionError(f"{what}: {error}") from None


# other values of every option that a loss of torch.nn has
OTHERWISE = {
    "reduction": "sum", "label_smoothing": 0.3, "ignore_index": 1, "beta": 0.3, "delta": 0.3, "margin": 0.3, "p": 1,
    "log_target": True, "log_input": False, "full": True, "eps": 0.1, "swap": True, "blank": 1, "zero_infinity": True,
    "weight": torch.rand(4) + 0.1, "pos_weight": torch.rand(4) + 0.1,
}  # fmt: skip


@pytest.mark.parametrize("kind", ARGUMENTS, ids=lambda k: k.__name__)
def test_options_of_exchanged_modules(kind):
    """An option that is set after fuse is the exchanged module's, too."""
    arguments = ARGUMENTS[kind]
    module = nn.ModuleDict({"loss": kind()})
    fused, _ = opreg.fuse(module)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="opreg")  # the op computes it
        torch.testing.assert_close(fused["loss"](*arguments), module["loss"](*arguments))
    for option, value in OTHERWISE.items():
        if not hasattr(module["loss"], option) or (kind is nn.NLLLoss and option == "label_smoothing"):
            continue
        for m in (module, fused):
            setattr(m["loss"], option, value)
        torch.testing.assert_close(fused["loss"](*arguments), module["loss"](*arguments))


@pytest.mark.parametrize(("kind", "option"), with_options("weight", "pos_weight"))
def test_buffers(kind, option):
    module = kind(reduction="none", **{option: torch.rand(4) + 0.1})
    fused, _ = opreg.fuse(module)
    scores, *others = ARGUMENTS[kind]
    for arguments in ((scores, *others), [a.mT.contiguous().mT if a.dim() > 1 else a for a in (scores, *others)]):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            compare(fused, module, arguments, [0])
        buffer = fused.get_buffer(option).requires_grad_()  # the module's own
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                want = torch.autograd.grad(module(*arguments).sum(), buffer)
            except RuntimeError:  # most are constants for torch too
                want = None
            if want:
                torch.testing.assert_close(torch.autograd.grad(fused(*arguments).sum(), buffer), want)
        buffer.requires_grad_(False)
    if kind in (nn.CrossEntropyLoss, nn.NLLLoss):
        images = torch.randn(2, 4, 3, 5).log_softmax(1).to(memory_format=torch.channels_last)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            compare(fused, module, (images, torch.randint(0, 4, (2, 3, 5))), [0])


@pytest.mark.parametrize("kind", [nn.HingeEmbeddingLoss, nn.CosineEmbeddingLoss, nn.L1Loss, nn.SiLU])
def test_copied_and_compiled(kind):
    """Which of the two ways a call goes is decided anew in each, in copies and under Dynamo too."""
    module = kind()
    fused, _ = opreg.fuse(module)
    *others, last = ARGUMENTS[kind]
    torch._dynamo.reset()
    for m in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), torch.compile(fused, backend="aot_eager")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(2):
                compare(m, module, (*others, last), [0])
                compare(m, module, (*others, last), range(3))
                if kind is not nn.CosineEmbeddingLoss:
                    compare(m, module, (*others, last.to(torch.complex64)), [])


class Native(nn.Module):
    def forward(self, x):
        return nn.functional.silu(x)


class ByHand(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("module", [Native(), ByHand()], ids=lambda m: type(m).__name__)
def test_a_rewritten_forward(module, compiled):
    """It is traced without values, so what no op takes runs the module's own."""
    fused, report = opreg.fuse(module)
    assert report.swapped
    torch._dynamo.reset()
    call = torch.compile(fused, backend="aot_eager", fullgraph=True) if compiled else fused
    for x in (X.to(torch.complex64), torch.nested.nested_tensor([*X], layout=torch.jagged), X):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compare(call, module, (x,), [0])
    with pytest.warns(UserWarning, match="an argument of Native is complex, so its own forward runs"):
        opreg.fuse(Native())[0](X.to(torch.complex64))


def test_a_call_that_is_left_is_told_of():
    fused, _ = opreg.fuse(nn.HingeEmbeddingLoss())
    with pytest.warns(UserWarning, match="a call of HingeEmbeddingLoss was left to torch's own.*target requires grad"):
        fused(X, SIGNS.clone().requires_grad_())
    with pytest.raises(RuntimeError, match="hinge_embedding_loss: expected target that does not require grad"):
        opreg.nn.HingeEmbeddingLoss()(X, SIGNS.clone().requires_grad_())  # which somebody asked for by name


@pytest.mark.parametrize("kind", ARGUMENTS, ids=lambda k: k.__name__)
def test_under_autocast(kind):
    module = kind()
    fused, _ = opreg.fuse(module)
    arguments = ARGUMENTS[kind]
    floating = [i for i, a in enumerate(arguments) if a.is_floating_point()]
    for halves in ([], *([i] for i in floating), floating):
        given = [a.bfloat16() if i in halves else a for i, a in enumerate(arguments)]
        with warnings.catch_warnings(), torch.autocast("cpu", dtype=torch.bfloat16):
            warnings.simplefilter("ignore")
            compare(fused, module, given, [0])


def test_traced():
    """A tracer's stand-ins for tensors are given to the op."""
    fused, _ = opreg.fuse(nn.Sequential(nn.SiLU(), nn.Mish()))
    traced = torch.fx.symbolic_trace(fused)
    targets = [n.target for n in traced.graph.nodes if n.op == "call_function"]
    assert targets == [torch.ops.lossreg.swish.default, torch.ops.lossreg.mish.default]
    program = torch.export.export(opreg.fuse(nn.HingeEmbeddingLoss())[0], (X, SIGNS))
    assert "lossreg.hinge_embedding_loss" in str(program.graph)


def test_arguments_that_are_missing_or_too_many():
    fused, _ = opreg.fuse(nn.L1Loss(reduction="none"))
    for given in ({}, {"input": X}, {"target": X}):
        with pytest.raises(RuntimeError, match="l1_loss: expected"):
            fused(**given)
    with pytest.raises(RuntimeError, match="L1Loss: expected"):
        fused(X, Y, Y)
