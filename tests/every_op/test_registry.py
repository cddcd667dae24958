"""Nothing is half registered: every op of the library has a declaration, and every declaration all that follows."""

from pathlib import Path

import pytest
import torch
import torch.utils.checkpoint

import opreg
from opreg import catalogue, registry
from opreg._library import NAMESPACE, PARTIAL
from opreg._private import (
    CACHE_KEY_READERS,
    apply_function,
    below_autograd,
    below_inplace,
    checkpointing,
    depends_on_data,
    destroy_library,
    entry_of,
    fake_mode,
    forget_op,
    function_being_compiled,
    function_mode_active,
    has_kernel,
    has_kernel_for,
    has_op,
    has_tangent,
    inductor_compiles,
    names_in,
    register_fake,
    set_in_cache_keys,
    tensor_metadata,
    tracing,
    transform_active,
    where_defined,
    without_fake_mode,
    without_key,
    wrap_entries,
)
from opreg.catalogue import coverage
from opreg.registry import of_namespace

CATALOGUE = {
    "swish", "hard_swish", "mish",
    "l1_loss", "mse_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits",
    "poisson_nll_loss", "gaussian_nll_loss", "kl_div", "soft_margin_loss", "hinge_embedding_loss",
    "margin_ranking_loss", "focal_loss",
    "nll_loss", "cross_entropy", "softmax_focal_loss", "pc_softmax_cross_entropy", "ohem_cross_entropy",
    "large_margin_softmax_loss", "arcface_loss", "amsoftmax_loss", "multi_margin_loss", "multilabel_margin_loss",
    "multilabel_soft_margin_loss", "distillation_loss", "linear_cross_entropy",
    "clip_loss", "siglip_loss", "nt_xent_loss", "sup_con_loss",
    "iou_loss", "giou_loss", "diou_loss", "ciou_loss", "eiou_loss", "focal_eiou_loss", "alpha_iou_loss", "siou_loss",
    "wiou_loss", "prob_iou_loss",
    "dice_loss", "tversky_loss", "jaccard_loss", "generalized_dice_loss", "lovasz_softmax_loss", "lovasz_hinge_loss",
    "affinity_loss", "affinity_field_loss", "ssim_loss",
    "triplet_margin_loss", "triplet_soft_margin_loss", "cosine_embedding_loss", "ctc_loss",
    "ema_update_", "coord_conv2d", "dynamic_conv2d",
}  # fmt: skip


def test_every_schema_of_the_library_is_declared():
    declared = {o._schema.name.split("::")[1] for op in of_namespace() for o in op.overloads}
    assert set(names_in(NAMESPACE)) == declared
    assert PARTIAL or {op.short for op in of_namespace()} >= CATALOGUE


def test_coverage(op):
    """CPU, fake, autograd, vmap; CUDA where the library has any of it, the second derivative where one is declared."""
    missing = {what for what, there in coverage(op).items() if not there}
    if not any(has_kernel(other.qualname, "CUDA") for other in of_namespace()):
        missing.discard("CUDA")  # the library was built without
    assert missing == (set() if op.second_derivative else {"second derivative"})


def test_declaration(op):
    """What cannot be asked of the dispatcher."""
    assert op.source
    assert op.differentiable
    assert set(op.indices) <= set(op.tensor_arguments)
    for spelling in op.spellings:
        library, *path = spelling.split(".")
        if library not in ("aten", "torch"):  # it need not be here; tests/rewrite/test_use.py has those
            continue
        owner = torch.ops.aten if library == "aten" else torch
        for name in path:
            owner = getattr(owner, name)  # raises where there is no such function
        assert callable(owner)


def test_schema_conventions(op):
    names = op.arguments
    # the standard terms of each kind of op
    assert names[0] in ("input", "input1", "anchor", "cosine", "log_probs", "logits", "averages", "gate")
    if op.reduces:
        assert op.value._schema.arguments[names.index("reduction")].default_value == "mean"
        assert op.is_loss


def declaration(**changes):
    fields = {
        "name": "test_registry::double",
        "schema": "(Tensor input) -> Tensor",
        "kernels": {"CPU": lambda input: 2 * input},
        "reference": lambda input: 2 * input,
        "shape": opreg.meta.same("input"),
        "samples": lambda make: iter([opreg.Sample((make.normal(3),))]),
        "errors": lambda make: iter([]),
        "source": "arithmetic",
        **changes,
    }
    return opreg.Op(**fields)


def test_an_op_of_ones_own_gets_everything(monkeypatch):
    monkeypatch.setattr(registry, "_ops", dict(registry._ops))  # other tests count the ops
    op = opreg.register(declaration())
    opreg.testing.check(op)
    assert opreg.get("test_registry::double") is op
    with pytest.raises(ValueError, match="test_registry::double: expected an op that is not registered yet"):
        opreg.register(declaration(source="another"))


def test_a_function_is_a_shape_rule(monkeypatch):
    monkeypatch.setattr(registry, "_ops", dict(registry._ops))  # other tests count the ops
    op = opreg.register(declaration(name="test_registry::twice", shape=lambda op, args: args["input"].shape))
    assert op.rule.typed_by == op.rule.on_host == ()
    assert torch.ops.test_registry.twice(torch.empty(3, device="meta")).shape == (3,)
    with pytest.raises(ValueError, match=r"test_registry::thrice: expected a rule of opreg.meta or a function .*got 3"):
        opreg.register(declaration(name="test_registry::thrice", shape=3))


def test_bad_declarations_are_refused():
    with pytest.raises(ValueError, match="test_registry::absent: expected a schema in the dispatcher"):
        opreg.register(declaration(name="test_registry::absent", kernels=None))
    with pytest.raises(ValueError, match='test_registry::other: expected a schema "'):
        opreg.register(declaration(name="test_registry::other", schema="(Tensor input) -> Tensor[]"))
    with pytest.raises(KeyError, match="expected the name of a registered op"):
        opreg.get("no_such_loss")


def test_private_transform_active():
    seen = []

    def probe(x):
        seen.append(transform_active())
        return x.sin()

    x = torch.ones(2)
    probe(x)
    torch.func.grad(lambda x: probe(x).sum())(x)
    torch.func.vmap(probe)(x)
    with torch.autograd.forward_ad.dual_level():
        probe(x)
    probe(x)
    assert seen == [False, True, True, True, False]


def test_private_below_autograd():
    x = torch.ones(2, requires_grad=True)
    with below_autograd():
        assert x.sin().grad_fn is None
    assert x.sin().grad_fn is not None


def test_private_apply_function():
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, factor):
            ctx.factor = factor
            return x * factor

        @staticmethod
        def backward(ctx, grad):
            return grad * ctx.factor, None

    x = torch.ones(2, requires_grad=True)
    y = apply_function(Double, x, 2)
    assert type(y.grad_fn) is Double._backward_cls
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [2, 2]


def test_schema_with_options_behind_the_star():
    """Positions are what a call's way through autograd goes by."""
    op = opreg.Op(
        "mylib::keyword_option", schema="(Tensor input, *, float scale=1.0) -> Tensor",
        reference=lambda input, scale: input * scale, shape=opreg.meta.same("input"), samples=lambda make: iter(()),
        errors=lambda make: iter(()), source="a test", kernels={"CPU": lambda input, scale=1.0: input * scale},
    )  # fmt: skip
    with pytest.raises(
        ValueError, match=r"mylib::keyword_option: expected a schema whose one argument behind \* is dtype"
    ):
        opreg.register(op)


def test_private_without_key():
    a = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        with without_key("AutocastCPU"):
            assert (a @ a).dtype == torch.float32
        assert (a @ a).dtype == torch.bfloat16


def test_private_names_and_kernels():
    assert "relu" in names_in("aten")
    assert has_kernel("aten::relu", "CPU")
    assert not has_kernel(f"{NAMESPACE}::mish", "MPS")
    assert has_kernel_for("aten::relu", "cpu")
    assert not has_kernel_for(f"{NAMESPACE}::mish", "mps")


def test_private_cache_keys():
    import torch.compiler.config as config

    with config.patch(cache_key_tag="mine other=1"):
        set_in_cache_keys("opreg", "a")
        set_in_cache_keys("opreg", "b")
        assert config.cache_key_tag == "mine other=1 opreg=b"


def test_private_readers_of_cache_keys():
    """Each module of torch that reads the keys of what is kept on disk."""
    root = Path(torch.__file__).parent
    texts = [path for part in ("_dynamo", "_functorch", "_inductor") for path in (root / part).rglob("*.py")]
    found = [path.relative_to(root.parent) for path in texts if b"cache_key_tag" in path.read_bytes()]
    assert {".".join(path.with_suffix("").parts) for path in found} <= {*CACHE_KEY_READERS}


def test_private_register_fake():
    lib = torch.library.Library("registration", "FRAGMENT")
    lib.define("with_a_fake(Tensor x) -> Tensor")
    register_fake("registration::with_a_fake", lambda x: x.new_empty(7), lib)
    assert torch.ops.registration.with_a_fake(torch.empty(2, device="meta")).shape == (7,)
    with fake_mode():
        assert torch.ops.registration.with_a_fake(torch.empty(2)).shape == (7,)
    destroy_library(lib)
    assert not has_op("registration::with_a_fake")


def test_private_libraries_end():
    lib = torch.library.Library("registration", "FRAGMENT")
    lib.define("for_a_while(Tensor x) -> Tensor")
    lib.impl("for_a_while", torch.clone, "CPU")
    assert has_op("registration::for_a_while")
    assert torch.ops.registration.for_a_while(torch.ones(1)).item() == 1
    destroy_library(lib)
    assert not has_op("registration::for_a_while")
    assert not hasattr(torch.ops.registration, "for_a_while")


def test_private_definitions():
    lib = torch.library.Library("registration", "FRAGMENT")
    lib.define("looked_up(Tensor x) -> Tensor")
    assert where_defined("registration::looked_up").startswith(str(Path(__file__)))
    held = torch.ops.registration.looked_up
    forget_op("registration", "looked_up")
    assert torch.ops.registration.looked_up is not held
    forget_op("registration", "never_defined")


def test_private_below_inplace():
    x = torch.ones(2)
    version = x._version
    with below_inplace():
        x.add_(1)
    assert x._version == version
    x.add_(1)
    assert x._version == version + 1


def test_private_fake_modes():
    mode = fake_mode()
    with mode:
        fake = torch.ones(2)
        with without_fake_mode():
            real = torch.ones(2)
    assert type(fake) is not torch.Tensor
    assert type(real) is torch.Tensor
    assert tensor_metadata(real).shape == (2,)


def test_private_modes():
    """A function mode and a dispatch mode are seen, each in its own time; a tracer of TorchScript too."""
    assert (function_mode_active(), tracing()) == (False, False)
    with torch.device("cpu"):
        assert (function_mode_active(), tracing()) == (True, False)
    with fake_mode() as mode:
        assert (function_mode_active(), tracing()) == (False, True)
        assert mode
    seen = []
    torch.jit.trace(lambda x: seen.append(tracing()) or x + 1, torch.ones(2), check_trace=False)
    assert seen == [True]


def test_private_depends_on_data():
    with fake_mode(), pytest.raises(depends_on_data()):
        torch.ones(3).nonzero()
    with fake_mode(), pytest.raises(depends_on_data()):
        torch.ones(()).item()


def test_private_function_being_compiled():
    seen = []

    def backend(module, _):
        seen.append(function_being_compiled())
        return module

    def function(x):
        return x + 1

    model = torch.nn.ReLU()
    for compiled in (function, model):
        torch.compile(compiled, backend=backend)(torch.ones(2))
    assert seen == [function, model]
    assert function_being_compiled() is None


def test_private_checkpointing():
    """In a region that is recomputed, at both times; not where saved tensors are moved elsewhere."""
    seen = []

    def region(x):
        seen.append(checkpointing())
        return x.exp()

    x = torch.ones(2, requires_grad=True)
    torch.utils.checkpoint.checkpoint(region, x, use_reentrant=False).sum().backward()
    with torch.autograd.graph.save_on_cpu():
        region(x)
    assert seen == [True, True, False]
    assert not checkpointing()


def test_private_inductor_compiles():
    """True while Inductor traces a graph, in that thread; not before, and not while other backends do."""
    import torch._inductor.compile_fx

    seen = []

    def inner(graph, inputs, **options):
        seen.append(inductor_compiles())
        return graph.forward

    def backend(graph, inputs):
        seen.append(inductor_compiles())
        return torch._inductor.compile_fx.compile_fx(graph, inputs, inner_compile=inner)

    torch.compile(lambda x: x.sin(), backend=backend)(torch.ones(2))
    assert [*seen, inductor_compiles()] == [False, True, False]


def test_private_has_tangent():
    x = torch.ones(2)
    assert not has_tangent(x)
    with torch.autograd.forward_ad.dual_level():
        assert not has_tangent(x)
        assert has_tangent(torch.autograd.forward_ad.make_dual(x, x))


def test_private_entries():
    """What torch.ops calls can be wrapped: of the overload, and of the name where that is its only one."""
    lib = torch.library.Library("test_private_entries", "DEF")
    for schema in ("one(Tensor x) -> Tensor", "two(Tensor x) -> Tensor", "two.other(int x) -> Tensor"):
        lib.define(schema)
        lib.impl(schema.split("(")[0], lambda x: torch.ones(2) * x, "CompositeExplicitAutograd")

    class Wrapped:
        def __init__(self, entry):
            self.entry = entry

        def __call__(self, *args):
            calls.append(args)
            return self.entry(*args)

    calls: list = []
    for name, count in (("one", 2), ("two", 1)):
        packet = getattr(torch.ops.test_private_entries, name)
        wrap_entries(packet.default, Wrapped)
        calls.clear()
        assert packet(torch.ones(2)).tolist() == packet.default(torch.ones(2)).tolist() == [1, 1]
        assert len(calls) == count
        assert entry_of(packet.default)(torch.ones(2)).tolist() == [1, 1]
        assert len(calls) == count


def test_ops_in_a_notebook():
    """A list as any other, which is shown as a table: a row an op, with what the command line says of it."""
    ops = opreg.registered()
    shown = ops._repr_html_()
    assert shown.count("<tr>") == len(ops) + 1
    row = next(line for line in shown.split("\n") if f">{ops[0].name}<" in line)
    assert row.count(">yes<") == sum(catalogue.coverage(ops[0]).values())
