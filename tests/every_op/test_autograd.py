"""Derivatives of every order and in every mode, autocast, and what torch itself checks of a custom op."""

import functools
import warnings

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import opreg
from conftest import DEVICE, samples_of
from opreg.messages.options import option_complaint
from opreg.meta.schema import bind, results_of
from opreg.testing import Maker, as_function, differentiable_function, joined, tensors_with_grad

SMALL = 80  # elements: finite differences cost a call for each


def smooth(op, index):
    sample = samples_of(op, requires_grad=True)[index]
    inputs = tensors_with_grad(op, sample)
    if not sample.smooth:
        pytest.skip("a kink: no finite differences")
    if sum(t.numel() for t in inputs.values()) > SMALL:
        pytest.skip("large: other samples take this path")
    return sample, list(inputs.values())


def graph_of(op, sample):
    """What decides which graph AOTDispatcher makes of a call: two samples that agree in it differ in numbers only."""
    bound = bind(op.value, sample.args, sample.kwargs)
    tensors = [bound[name] for name in op.tensor_arguments]
    described = [t if t is None else (t.dim(), t.is_floating_point(), t.numel() > 0) for t in tensors]
    return described, bound.get("reduction") == "none"


def test_opcheck(op, index):
    """torch.library.opcheck: schema, autograd registration, fake against real; and AOTDispatcher with dynamic shapes,
    which takes most of the time, once for each graph."""
    samples = samples_of(op, requires_grad=True)
    sample = samples[index]
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    # it holds NaN unequal to NaN
    numbers = (s for s in samples if not joined(op.value(*s.args, **s.kwargs)).isnan().any())
    if sample is next((s for s in numbers if graph_of(op, s) == graph_of(op, sample)), None):
        checks.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(op.value, sample.args, sample.kwargs, test_utils=checks)


def test_gradcheck(op, index):
    sample, inputs = smooth(op, index)
    assert gradcheck(differentiable_function(op, sample), inputs)


def test_gradgradcheck(op, index):
    if not op.second_derivative:
        pytest.skip("an error: test_no_second_derivative")
    sample, inputs = smooth(op, index)
    assert gradgradcheck(differentiable_function(op, sample), inputs)


def test_no_second_derivative(op):
    """Where there is none, asking for it is an error, and no silent zero."""
    if op.second_derivative:
        pytest.skip("there is one")
    sample = first_smooth(op)
    inputs = list(tensors_with_grad(op, sample).values())
    (g,) = torch.autograd.grad(as_function(op, sample, op.value)(*inputs).sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match=f"{op.short}: expected at most a first derivative, got a request for"):
        torch.autograd.grad(g.pow(2).sum(), inputs[:1])


def test_forward_mode(op, index):
    sample, inputs = smooth(op, index)
    assert gradcheck(differentiable_function(op, sample), inputs, check_forward_ad=True, check_backward_ad=False)


def first_smooth(op, **options):
    """Or the first at all, where the definition holds a factor constant and no sample suits finite differences."""
    samples = [s for s in samples_of(op, requires_grad=True, **options) if s.args[0].numel()]
    return next((s for s in samples if s.smooth), samples[0])


def test_third_derivative(op):
    if not op.second_derivative:
        pytest.skip("there is no second one")
    sample = first_smooth(op)
    inputs = list(tensors_with_grad(op, sample).values())
    for call in (op.value, op.call_reference):
        total = as_function(op, sample, call)(*inputs).exp().sum()  # exp: else linear losses have no second
        (g,) = torch.autograd.grad(total, inputs[:1], create_graph=True)
        (gg,) = torch.autograd.grad(g.pow(2).sum(), inputs[:1], create_graph=True)
        (ggg,) = torch.autograd.grad(gg.pow(2).sum(), inputs[:1])
        if call is op.value:
            ours = ggg
    torch.testing.assert_close(ours, ggg)


def test_func_transforms(op):
    """grad, vmap, both ways of nesting them, jvp, hessian, jacrev over jacfwd: equal to those of the reference."""
    sample = first_smooth(op)
    inputs = [t.detach() for t in tensors_with_grad(op, sample).values()]
    results = []
    for call in (op.value, op.call_reference):
        function = as_function(op, sample, call)

        def scalar(x, function=function):
            return function(x, *inputs[1:]).sum()

        x = inputs[0]
        batch = torch.stack([x, 0.5 * x, 0.9 * x])
        results.append(
            [
                torch.func.grad(scalar)(x),
                torch.func.vmap(scalar)(batch),
                torch.func.vmap(torch.func.grad(scalar))(batch),
                torch.func.grad(lambda b, s=scalar: torch.func.vmap(s)(b).sum())(batch),
                torch.func.jvp(scalar, (x,), (torch.ones_like(x),))[1],
                torch.func.hessian(scalar)(x),
                torch.func.jacrev(torch.func.jacfwd(scalar))(x),
            ]
        )
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_vmap_over_every_argument(op):
    sample = first_smooth(op)
    tensors = [a for a in sample.args if isinstance(a, torch.Tensor)]
    stacked = [torch.stack([a.detach(), a.detach()]) for a in tensors]

    def call(*args):
        return joined(op.value(*args, *sample.args[len(tensors) :], **sample.kwargs))

    got = torch.func.vmap(call)(*stacked)
    want = torch.stack([call(*(s[i] for s in stacked)) for i in range(2)])
    torch.testing.assert_close(got, want)


def test_batched_gradients(op):
    """is_grads_batched runs vmap over the backward op."""
    sample = first_smooth(op)
    inputs = list(tensors_with_grad(op, sample).values())
    result = as_function(op, sample, op.value)(*inputs)
    grads = torch.stack([torch.ones_like(result), 2 * torch.ones_like(result)])
    (batched,) = torch.autograd.grad(result, inputs[:1], grads, is_grads_batched=True, retain_graph=True)
    (one,) = torch.autograd.grad(result, inputs[:1], torch.ones_like(result))
    torch.testing.assert_close(batched, torch.stack([one, 2 * one]))


def test_an_input_changed_in_place_is_noticed(op):
    sample = first_smooth(op)
    x = sample.args[0].detach().clone().requires_grad_()
    y = x * 1
    result = joined(op.value(y, *sample.args[1:], **sample.kwargs))
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()


def test_gradient_only_where_asked(op):
    """A target that asks for the gradient alone, and the input alone, get what they get together."""
    sample = first_smooth(op)
    inputs = tensors_with_grad(op, sample)
    together = torch.autograd.grad(as_function(op, sample, op.value)(*inputs.values()).sum(), list(inputs.values()))
    for k, (name, t) in enumerate(inputs.items()):
        others = {n: (o if n == name else o.detach()) for n, o in inputs.items()}
        (alone,) = torch.autograd.grad(as_function(op, sample, op.value)(*others.values()).sum(), [t])
        torch.testing.assert_close(alone, together[k], msg=name)


def test_places_of_the_backward_op(op):
    """It returns a tensor for each differentiable argument, whatever is asked for: a gradient, or one without elements.
    Kernel, fake and reference agree."""
    sample = first_smooth(op)
    wanted = tensors_with_grad(op, sample)
    assert [str(r.type) for r in op.backward._schema.returns] == ["Tensor"] * len(op.differentiable)

    def called(mask, where):
        bound = {n: where(a) for n, a in bind(op.value, sample.args, sample.kwargs).items()}
        asked = {"needs_input_grad": mask} if op.forward_takes_mask else {}
        made = results_of(op.value(**bound) if op.forward is None else op.forward(**bound, **asked))
        bound.pop("dtype", None)
        incoming, state = map(torch.ones_like, made[: len(op.results)]), made[len(op.results) :]
        return (*incoming, *state, *bound.values()), {"needs_input_grad": mask}

    def gradients(mask, where):
        args, kwargs = called(mask, where)
        return op.backward(*args, **kwargs)

    def detached(a):
        return a.detach() if isinstance(a, torch.Tensor) else a

    def on_meta(a):
        return a.detach().to("meta") if isinstance(a, torch.Tensor) else a

    every = [n in wanted for n in op.differentiable]
    together = results_of(gradients(every, detached))
    for k in range(len(every) + 1):
        mask = [asked and at == k for at, asked in enumerate(every)]  # one alone, in the end none
        returned = gradients(mask, detached)
        assert isinstance(returned, tuple if len(mask) > 1 else torch.Tensor)
        fakes = results_of(gradients(mask, on_meta))
        for grad, fake, asked, whole in zip(results_of(returned), fakes, mask, together, strict=True):
            assert (grad.shape, grad.dtype) == (fake.shape, fake.dtype)
            assert grad.device.type == DEVICE
            if asked:
                torch.testing.assert_close(grad, whole)
            else:
                assert grad.shape == (0,)
        torch.library.opcheck(op.backward, *called(mask, detached), test_utils=("test_schema", "test_faketensor"))


CONSTANTS = [
    ("binary_cross_entropy", "weight"),
    ("binary_cross_entropy_with_logits", "weight"),
    ("binary_cross_entropy_with_logits", "pos_weight"),
    ("soft_margin_loss", "target"),
    ("hinge_embedding_loss", "target"),
]


@pytest.mark.parametrize(("name", "constant"), CONSTANTS)
def test_a_constant_that_requires_grad_is_an_error(name, constant):
    x, t, w = (torch.rand(3, device=DEVICE) for _ in range(3))
    arguments = {"input": x, "target": t, constant: w.requires_grad_()}
    with pytest.raises(RuntimeError, match=f"{name}: expected {constant} that does not require grad"):
        opreg.get(name).value(**arguments)
    with torch.no_grad():
        opreg.get(name).value(**arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(op, dtype):
    """A loss is float32 and reads its inputs as they are; an activation keeps its input's dtype."""
    sample = first_smooth(op, dtype=dtype, device=DEVICE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.autocast(DEVICE, dtype=dtype):
            result = joined(op.value(*sample.args, **sample.kwargs))
    assert result.dtype == (torch.float32 if op.is_loss else dtype)
    options = {"dtype": torch.float32} if op.is_loss else {}
    assert torch.equal(result, joined(op.value(*sample.args, **sample.kwargs, **options)))
    x = sample.args[0]
    assert torch.autograd.grad(result.sum(), x)[0].dtype == dtype


def in_the_ops_place(op, args, kwargs):
    """Every way on which the reference runs where the op was called, each with its result for these arguments."""
    x, *rest = args
    twice = torch.stack([x, x])

    def call(x):
        return joined(op.value(x, *rest, **kwargs))

    def dual():
        with torch.autograd.forward_ad.dual_level():
            made = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
            return torch.autograd.forward_ad.unpack_dual(call(made)).primal

    return {
        "vmap": lambda: torch.func.vmap(call)(twice)[1],
        "jvp": lambda: torch.func.jvp(call, (x,), (torch.ones_like(x),))[0],
        "vjp": lambda: torch.func.vjp(call, x)[0],
        "vmap of vjp": lambda: torch.func.vmap(lambda x: torch.func.vjp(call, x)[0])(twice)[1],
        "jvp of vmap": lambda: torch.func.jvp(torch.func.vmap(call), (twice,), (torch.ones_like(twice),))[0][1],
        "forward mode": dual,
        "decomposition": lambda: joined(op.call_reference(*args, **kwargs)),
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_autocast_of_the_reference(op, dtype):
    """Where the reference runs in the op's place, autocast makes of the call what it makes of the op's, and nothing of
    the calls inside: the result is that of the reference on the same arguments without autocast."""
    sample = first_smooth(op, dtype=dtype, device=DEVICE)
    args = [a.detach() if isinstance(a, torch.Tensor) else a for a in sample.args]
    explicit = bind(op.value, args, sample.kwargs)
    if dtype != torch.float64:
        explicit |= {n: explicit[n].bfloat16() for n in op.lowered if explicit[n] is not None}
    if op.is_loss and dtype != torch.float64:
        explicit["dtype"] = torch.float32
    want = joined(op.call_reference(**explicit))
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        eager = joined(op.value(*args, **sample.kwargs))
        assert eager.dtype == want.dtype
        torch.testing.assert_close(eager, want, rtol=2e-2 if op.lowered else None, atol=4e-2 if op.lowered else None)
        for way, result in in_the_ops_place(op, args, sample.kwargs).items():
            assert torch.is_autocast_enabled(DEVICE), way
            got = result()
            assert got.dtype == want.dtype, way
            torch.testing.assert_close(got, want, msg=lambda text, way=way: f"{way}: {text}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_autocast_of_the_references_derivatives(op, dtype):
    """The same of gradients, batched gradients and second derivatives, taken inside of autocast and outside."""
    sample = first_smooth(op, dtype=dtype, device=DEVICE)
    x, *rest = (a.detach() if isinstance(a, torch.Tensor) else a for a in sample.args)
    x.requires_grad_()
    results = []
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        loss = joined(op.value(x, *rest, **sample.kwargs))
    for enabled in (True, False):
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=enabled):
            grads = torch.stack([torch.ones_like(loss), 2 * torch.ones_like(loss)])
            (batched,) = torch.autograd.grad(loss, x, grads, is_grads_batched=True, retain_graph=True)
            (g,) = torch.autograd.grad(
                loss, x, torch.ones_like(loss), create_graph=op.second_derivative, retain_graph=True
            )
            second = g.new_zeros(())
            if g.requires_grad:
                (second,) = torch.autograd.grad(g.sum(), x, retain_graph=True, materialize_grads=True)
            results.append([batched, g, second])
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        of_transform = torch.func.grad(lambda x: joined(op.value(x, *rest, **sample.kwargs)).sum())(x.detach())
    for inside, outside in zip(*results, strict=True):
        assert inside.dtype == outside.dtype == dtype
        assert torch.equal(inside, outside) or torch.allclose(inside, outside, rtol=1e-6, atol=1e-6, equal_nan=True)
    assert of_transform.dtype == dtype
    low = dtype == torch.bfloat16 or op.lowered
    torch.testing.assert_close(of_transform, results[0][1], rtol=3e-2 if low else None, atol=3e-2 if low else None)


@pytest.mark.skipif(DEVICE != "cpu", reason="counts the CPU's allocations")
def test_autocast_copies_nothing():
    from torch.profiler import ProfilerActivity, profile

    x, t = torch.randn(1 << 20).bfloat16(), torch.rand(1 << 20)
    with torch.autocast("cpu"), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        torch.ops.lossreg.focal_loss(x, t)
    assert max(e.cpu_memory_usage for e in seen.key_averages()) < 1 << 16


def test_autocast_of_float64_stays(op):
    if not op.is_loss:
        pytest.skip("an activation")
    sample = first_smooth(op)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        assert joined(op.value(*sample.args, **sample.kwargs)).dtype == torch.float64


def test_errors(op):
    """Every error sample fails with its message, on real tensors and, where shapes and dtypes show it, on fakes."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    seen = 0
    for sample in op.errors(Maker(torch.float64, device=DEVICE)):
        elements = ("class index", "_lengths", "in \\[0, 1\\]")
        if sample.values and DEVICE != "cpu" and any(text in sample.message for text in elements):
            continue  # what the elements hold is no error there, but NaN
        with pytest.raises(RuntimeError, match=sample.message):
            op.value(*sample.args, **sample.kwargs)
        if not sample.values:
            mode = FakeTensorMode()
            fake = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in sample.args]
            options = {k: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in sample.kwargs.items()}
            with mode, pytest.raises(RuntimeError, match=sample.message):
                op.value(*fake, **options)
        seen += 1
    assert seen >= 2


TRANSFORMS = {
    "vjp": torch.func.vjp,
    "jvp": lambda call, x: torch.func.jvp(call, (x,), (torch.ones_like(x),)),
    "vmap": lambda call, x: torch.vmap(call)(torch.stack([x, x])),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_bad_input_under_transforms(op, transform):
    """Where the reference runs in the kernel's place, it refuses what the kernel refuses, in the same words."""
    if op.short == "ctc_loss" and transform == "vmap":
        pytest.skip("its lengths are read on the host")
    tried = 0
    for error in op.errors(Maker(torch.float64, device=DEVICE)):
        x, *rest = error.args
        of_an_option = option_complaint(op, {n: a for n, a in error.kwargs.items() if n not in op.tensor_arguments})
        seen = of_an_option or not error.values
        if not seen or not isinstance(x, torch.Tensor) or not (x.is_floating_point() or transform == "vmap"):
            continue
        call = functools.partial(lambda rest, options, x: op.value(x, *rest, **options), rest, error.kwargs)
        with pytest.raises(RuntimeError, match=error.message):
            TRANSFORMS[transform](call, x.detach())
        tried += 1
    assert tried or (transform != "vmap" and op.arguments == ["input"])  # whose only errors are of integers


def test_missing_tensor_is_an_error(op):
    """None for any required tensor, with others there and without, real and fake."""
    sample = first_smooth(op)
    required = [a.name for a in op.value._schema.arguments if str(a.type) == "Tensor"]
    for k, name in enumerate(required):
        args = [None if i == k else a.detach() for i, a in enumerate(sample.args)]
        if not any(isinstance(a, torch.Tensor) for a in args):
            continue
        with pytest.raises(RuntimeError, match=f"{op.short}: expected {name} to be a tensor, got None"):
            op.value(*args, **sample.kwargs)
        with pytest.raises(RuntimeError, match=f"{op.short}: expected {name} to be a tensor, got None"):
            op.value(*(a if a is None else a.to("meta") for a in args), **sample.kwargs)
    with pytest.raises(RuntimeError, match=f"{op.short}: expected {required[0]} to be a tensor, got None"):
        op.value(*[None] * len(required))


@pytest.mark.skipif(DEVICE == "cpu", reason="needs two devices")
def test_two_devices_are_an_error():
    with pytest.raises(RuntimeError, match="mse_loss: expected all tensors on one device, got cuda:0 and cpu"):
        torch.ops.lossreg.mse_loss(torch.randn(3, device=DEVICE), torch.randn(3))
