"""What the tests of this folder run in the processes of a pool; each function compares with one process itself."""

import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.experimental import implicit_replication

import opreg
from opreg.distributed import LossParallel, _call, vocab_parallel_cross_entropy, vocab_parallel_linear_cross_entropy
from opreg.meta.schema import bind
from opreg.registry import of_namespace
from placements import compare, full, meshes, samples_of, sharded

ops = torch.ops.lossreg


def same(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12, equal_nan=True)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=dtype)


def indices(classes: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(seed))


def leaf(t: Tensor) -> Tensor:
    return t.detach().clone().requires_grad_()


def own(classes: int) -> slice:
    """The classes of this process."""
    each = -(-classes // dist.get_world_size())
    first = min(dist.get_rank() * each, classes)
    return slice(first, min(first + each, classes))


# --- plain functions


def vocab_parallel(classes: int, smoothing: float, weighted: bool, soft: bool) -> None:
    part = own(classes)
    weight = draw(classes).abs() + 0.1 if weighted else None
    target = draw(6, 4, classes, seed=1).softmax(-1) if soft else indices(classes, 6, 4)
    if not soft:
        target[0] = -100
    local_target = target[..., part] if soft else target
    options: dict[str, Any] = {"weight": weight, "label_smoothing": smoothing, "num_classes": classes}
    x = leaf(draw(6, 4, classes))
    local = leaf(x[..., part])
    for reduction in ("mean", "sum", "none"):
        x.grad = local.grad = None
        want = ops.cross_entropy(x.flatten(0, 1), target.flatten(0, 1), weight, -100, reduction, smoothing)
        got = vocab_parallel_cross_entropy(local, local_target, reduction=reduction, **options)
        same(got.reshape(want.shape), want)
        upstream = torch.linspace(1, 2, want.numel(), dtype=want.dtype).reshape(want.shape)
        (want * upstream).sum().backward()
        (got.reshape(want.shape) * upstream).sum().backward()
        same(local.grad, x.grad[..., part])
    hidden, head, bias = leaf(draw(6, 4, 7)), leaf(draw(classes, 7)), leaf(draw(classes, seed=3))
    h, w, b = leaf(hidden), leaf(head[part]), leaf(bias[part])
    want = ops.linear_cross_entropy(hidden, head, target, bias, weight, -100, "mean", smoothing)
    got = vocab_parallel_linear_cross_entropy(h, w, local_target, local_bias=b, **options)
    same(got, want)
    want.backward()
    got.backward()
    for ours, theirs in ((h.grad, hidden.grad), (w.grad, head.grad[part]), (b.grad, bias.grad[part])):
        same(ours, theirs)


def masked_scores_and_wrong_indices() -> None:
    """A vocabulary that is padded with -inf, so that a process has nothing else; an index that is no class."""
    x, target = draw(5, 8), indices(6, 5)
    x[:, 6:] = -torch.inf
    x, local = leaf(x), leaf(x[:, own(8)])
    want, got = ops.cross_entropy(x, target), vocab_parallel_cross_entropy(local, target)
    same(got, want)
    want.backward()
    got.backward()
    same(local.grad, x.grad[:, own(8)])
    target[1] = 8
    losses = vocab_parallel_cross_entropy(local, target, reduction="none", label_smoothing=0.1)
    assert losses.isnan().tolist() == [False, True, False, False, False]


def second_derivative() -> None:
    x, target = leaf(draw(3, 8)), indices(8, 3)
    local = leaf(x[:, own(8)])

    def penalty(loss: Tensor, scores: Tensor) -> Tensor:
        return torch.autograd.grad(loss, scores, create_graph=True)[0].square().sum()

    # each process has its part of the penalty, whose gradient runs through what all have
    penalty(ops.cross_entropy(x, target, label_smoothing=0.1), x).backward()
    penalty(vocab_parallel_cross_entropy(local, target, label_smoothing=0.1), local).backward()
    same(local.grad, x.grad[:, own(8)])


def normalizer_over_microbatches() -> None:
    """Gradients of microbatches, each divided by the number of all tokens, add up to that of the batch."""
    x, target = leaf(draw(8, 12)), indices(12, 8)
    target[:3] = -100
    local = leaf(x[:, own(12)])
    ops.cross_entropy(x, target).backward()
    count = (target != -100).sum()
    for rows in (slice(0, 2), slice(2, 7), slice(7, 8)):
        vocab_parallel_cross_entropy(local[rows], target[rows], normalizer=count).backward()
    same(local.grad, x.grad[:, own(12)])


def one_graph() -> list[str]:
    """The collectives of a compiled step, forward and backward, in the order of its graphs; values as in eager mode."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.partitioners import min_cut_rematerialization_partition as partition

    x, target, hidden, head = leaf(draw(5, 2)), indices(8, 5), leaf(draw(5, 3)), leaf(draw(2, 3, seed=dist.get_rank()))
    seen: list[str] = []

    def look(graph: torch.fx.GraphModule, _: Any) -> Any:
        seen.extend(
            str(n.target).removeprefix("_c10d_functional.") for n in graph.graph.nodes if "c10d" in str(n.target)
        )
        return graph

    def step(x: Tensor, hidden: Tensor, head: Tensor) -> Tensor:
        loss = vocab_parallel_cross_entropy(x, target, label_smoothing=0.1)
        return loss + vocab_parallel_linear_cross_entropy(hidden, head, target)

    want = step(x, hidden, head)
    gradients = torch.autograd.grad(want, (x, hidden, head))
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend=aot_autograd(fw_compiler=look, partition_fn=partition))
    got = compiled(x, hidden, head)
    same(got, want)
    for ours, theirs in zip(torch.autograd.grad(got, (x, hidden, head)), gradients, strict=True):
        same(ours, theirs)

    class Exported(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return vocab_parallel_cross_entropy(x, target)

    exported = torch.export.export(Exported(), (x.detach(),))
    same(exported.module()(x.detach()), vocab_parallel_cross_entropy(x, target).detach())
    return seen


def refusals() -> dict[str, str]:
    x, target = draw(4, 2), indices(8, 4)
    mesh = meshes()["4"]
    sharded = distribute_tensor(draw(8, 6), mesh, [Shard(0)])
    classes, rows = (
        distribute_tensor(draw(8, 6), mesh, [Shard(1)]),
        distribute_tensor(indices(6, 8), mesh, [Replicate()]),
    )
    weight = distribute_tensor(draw(6), mesh, [Shard(0)]).requires_grad_()
    average = DTensor.from_local(draw(3), mesh, [Partial()])
    pair = distribute_tensor(draw(8, 6), meshes()["2"], [Shard(0)])
    calls = {
        "target": lambda: vocab_parallel_cross_entropy(x, target[:3]),
        "number": lambda: vocab_parallel_cross_entropy(x, target, num_classes=9),
        "reduction": lambda: vocab_parallel_cross_entropy(x, target, reduction="avg"),
        "normalizer": lambda: vocab_parallel_cross_entropy(x, target, reduction="sum", normalizer=3),
        "smoothing": lambda: vocab_parallel_cross_entropy(x, target, label_smoothing=2.0),
        "weight": lambda: vocab_parallel_cross_entropy(x, target, weight=draw(2)),
        "head": lambda: vocab_parallel_linear_cross_entropy(x, draw(2, 3), target),
        "plain": lambda: ops.cross_entropy(sharded, indices(6, 8)),
        "meshes": lambda: ops.mse_loss(sharded, pair),
        "shapes": lambda: ops.mse_loss(sharded, distribute_tensor(draw(8, 5), mesh, [Shard(0)])),
        "state": lambda: ops.cross_entropy_forward(sharded, distribute_tensor(indices(6, 8), mesh, [Shard(0)])),
        "in place": lambda: ops.ema_update_([average], [average], 0.5),
        "option": lambda: ops.softmax_focal_loss(classes, rows, gamma=-1.0),
        "constant": lambda: ops.cross_entropy(classes, rows, weight),
        "style": lambda: LossParallel()._apply(torch.nn.CrossEntropyLoss(), mesh),
    }
    said = {}
    for name, call in calls.items():
        try:
            call()
            said[name] = "no error"
        except RuntimeError as error:
            said[name] = str(error)
    return said


# --- DTensor


def placements_of_results() -> dict[str, str]:
    mesh, square = meshes()["4"], meshes()["2x2"]
    x, target = distribute_tensor(draw(8, 6), mesh, [Shard(0)]), distribute_tensor(indices(6, 8), mesh, [Shard(0)])
    both = distribute_tensor(leaf(draw(8, 6)), square, [Shard(0), Shard(1)])
    rows = distribute_tensor(indices(6, 8), square, [Shard(0), Replicate()])
    losses = ops.cross_entropy(both, rows, None, -100, "none")
    (gradient,) = torch.autograd.grad(losses.full_tensor().sum(), both)
    return {
        "none": str(ops.cross_entropy(x, target, None, -100, "none").placements),
        "mean": str(ops.cross_entropy(x, target).placements),
        "activation": str(ops.mish(distribute_tensor(draw(8, 6), mesh, [Shard(1)])).placements),
        "batch and classes": str(losses.placements),
        "gradient": str(gradient.placements),
    }


def without_autograd() -> None:
    mesh = meshes()["4"]
    x, target = draw(10, 6), indices(6, 10)
    want = ops.cross_entropy(x, target)
    for placement in (Shard(0), Shard(1), Replicate()):
        classes = Replicate() if placement == Shard(1) else placement
        for context in (torch.inference_mode, torch.no_grad):
            with context():
                scores = distribute_tensor(x, mesh, [placement])
                rows = distribute_tensor(target, mesh, [classes])
                same(ops.cross_entropy(scores, rows).full_tensor(), want)
                same(opreg.functional.mish(scores).full_tensor(), ops.mish(x))
    with implicit_replication():
        same(ops.cross_entropy(distribute_tensor(x, mesh, [Shard(0)]), target).full_tensor(), want)


def second_derivative_of_sharded() -> None:
    """A penalty of the gradient, whose own gradient runs through the collectives."""
    mesh, target = meshes()["4"], indices(8, 8)

    def penalty(loss: Tensor, x: Tensor) -> Tensor:
        return full(torch.autograd.grad(loss, x, create_graph=True)[0]).square().sum()

    for op, other, by_index in (
        (ops.focal_loss, draw(8, 8, seed=1).sigmoid(), False),
        (ops.cross_entropy, target, True),
    ):
        x = leaf(draw(8, 8))
        (want,) = torch.autograd.grad(penalty(op(x, other), x), x)
        for placement in (Shard(0), Shard(1)):
            sharded = distribute_tensor(draw(8, 8), mesh, [placement]).requires_grad_()
            beside = distribute_tensor(other, mesh, [Replicate() if by_index and placement == Shard(1) else placement])
            (got,) = torch.autograd.grad(penalty(op(sharded, beside), sharded), sharded)
            same(full(got), want)


def beside_the_mesh() -> None:
    """Two of the processes have the tensors; the others go through the same program."""
    mesh = DeviceMesh("cpu", [0, 1])
    x = distribute_tensor(draw(5, 3), mesh, [Shard(0)]).requires_grad_()
    loss = ops.mse_loss(x, distribute_tensor(draw(5, 3, seed=1), mesh, [Shard(0)]))
    values = ops.mish(x)
    assert [tuple(t.shape) for t in (loss, values)] == [(), (5, 3)]
    loss.backward()
    if dist.get_rank() < 2:
        same(loss.full_tensor(), ops.mse_loss(draw(5, 3), draw(5, 3, seed=1)))
        same(values.full_tensor(), ops.mish(draw(5, 3)))


def backward_op() -> None:
    mesh = meshes()["4"]
    x, target, grad = draw(10, 6), draw(10, 6, seed=1).sigmoid(), torch.tensor(2.0, dtype=torch.float64)
    options = {"reduction": "mean", "needs_input_grad": [True, False]}
    want = ops.focal_loss_backward(grad, x, target, **options)
    sharded = [distribute_tensor(t, mesh, [Shard(0)]) for t in (x, target)]
    got = ops.focal_loss_backward(distribute_tensor(grad, mesh, [Replicate()]), *sharded, **options)
    same(got[0].full_tensor(), want[0])


def compiled_and_autocast() -> None:
    mesh = meshes()["4"]
    x, target = draw(9, 7), indices(7, 9)

    def step(x: Tensor, target: Tensor) -> Tensor:
        return ops.cross_entropy(x * 2, target, label_smoothing=0.1) + ops.mish(x).sum()

    alone = leaf(x)
    want = step(alone, target)
    want.backward()
    for placement in (Shard(0), Shard(1)):
        torch._dynamo.reset()
        scores = distribute_tensor(x, mesh, [placement]).requires_grad_()
        rows = distribute_tensor(target, mesh, [placement if placement == Shard(0) else Replicate()])
        got = torch.compile(step, fullgraph=True, backend="aot_eager")(scores, rows)
        got.backward()
        same(got.full_tensor(), want)
        same(scores.grad.full_tensor(), alone.grad)
        with torch.autocast("cpu"):
            low = ops.cross_entropy(scores.detach().bfloat16(), rows)
        torch.testing.assert_close(low.full_tensor(), ops.cross_entropy(x.bfloat16(), target, dtype=torch.float32))


def low_precision() -> None:
    """Results have the op's dtype, and its digits: sums over processes are rounded once, gradients at targets too."""
    mesh, target = meshes()["4"], indices(40, 16)
    target[2] = -100
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        x = leaf((4 * draw(16, 40)).to(dtype))
        want = ops.cross_entropy(x, target, label_smoothing=0.1)
        want.backward()
        for placement in (Shard(0), Shard(1)):
            scores = distribute_tensor(x.detach(), mesh, [placement]).requires_grad_()
            rows = distribute_tensor(target, mesh, [placement if placement == Shard(0) else Replicate()])
            got = ops.cross_entropy(scores, rows, label_smoothing=0.1)
            got.backward()
            torch.testing.assert_close(got.full_tensor(), want)
            unit = torch.finfo(dtype).eps
            torch.testing.assert_close(scores.grad.full_tensor(), x.grad, rtol=max(2 * unit, 1e-5), atol=unit / 16)


def strided_shards() -> None:
    """The order in which FSDP2 splits what tensor parallelism has split already."""
    from torch.distributed.tensor.placement_types import _StridedShard

    square, x, target = meshes()["2x2"], draw(8, 6), draw(8, 6, seed=1)
    half = distribute_tensor(x, square, [Replicate(), Shard(0)]).to_local()
    part = half.chunk(2)[square.get_local_rank(0)].contiguous()
    placements = [_StridedShard(0, split_factor=2), Shard(0)]
    strided = DTensor.from_local(part, square, placements, run_check=False, shape=x.shape, stride=x.stride())
    other = distribute_tensor(target, square, [Shard(0), Shard(0)])
    same(ops.mse_loss(strided, other).full_tensor(), ops.mse_loss(x, target))


def averages() -> None:
    mesh = meshes()["4"]
    average, other = (distribute_tensor(draw(5, 3), mesh, [Shard(0)]) for _ in range(2))
    counter = torch.zeros(2)
    param = distribute_tensor(2 * draw(5, 3), mesh, [Shard(1)])
    ops.ema_update_([average, counter], [param, torch.ones(2)], 0.5)
    same(average.full_tensor(), 1.5 * draw(5, 3))
    assert counter.tolist() == [0.5, 0.5]
    with torch.inference_mode():
        ops.ema_update_([other], [param], 0.5)
    same(other.full_tensor(), 1.5 * draw(5, 3))


def says_what_it_gathers() -> list[str]:
    mesh = meshes()["4"]
    x, target = distribute_tensor(draw(8, 6), mesh, [Shard(0)]), distribute_tensor(indices(6, 8), mesh, [Shard(0)])
    _call._said.clear()  # by other tests of these processes
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):  # once each
            loss = ops.ohem_cross_entropy(x, target)
            ops.giou_loss(*(distribute_tensor(draw(8, 4).abs(), mesh, [Shard(1)]) for _ in range(2)))
    same(loss.full_tensor(), ops.ohem_cross_entropy(draw(8, 6), indices(6, 8)))
    return sorted(str(w.message) for w in said if "gathered" in str(w.message))


def ops_of_ones_own() -> list[str]:
    """By a rule of opreg.meta; by a function, which says nothing of dimensions; with another mean; other values."""

    def square(x: Tensor, t: Tensor, reduction: str = "mean") -> Tensor:
        loss = (x - t) ** 2
        return {"none": loss, "sum": loss.sum(), "mean": loss.mean()}[reduction]

    def of_positives(x: Tensor, t: Tensor, reduction: str = "mean") -> Tensor:
        return square(x, t, "sum") / (t > 0).sum() if reduction == "mean" else square(x, t, reduction)

    def centred(x: Tensor, t: Tensor, reduction: str = "mean") -> Tensor:
        return square(x - x.mean(0), t, reduction)

    def by_function(op: str, args: Any) -> Any:
        return args["x"].shape

    def samples(make: Any) -> Any:
        yield opreg.Sample((make.normal(4, 3), make.normal(4, 3)))

    rule = opreg.meta.same("x", "t")
    declared: list[tuple[Any, Any, dict[str, Any]]] = [
        (square, rule, {}),
        (square, by_function, {}),
        (of_positives, rule, {}),
        (of_positives, rule, {"count": lambda args: (args["t"] > 0).sum()}),
        (centred, rule, {}),
    ]
    mesh, said = meshes()["4"], []
    for k, (definition, shape, options) in enumerate(declared):
        op = opreg.register(
            opreg.Op(
                f"sharded::loss{k}",
                reference=definition,
                shape=shape,
                samples=samples,
                errors=lambda make: iter(()),
                source="a test",
                schema='(Tensor x, Tensor t, str reduction="mean") -> Tensor',
                kernels={"CPU": definition},
                **options,
            )
        )
        x, t = leaf(draw(5, 3)), draw(5, 3, seed=1)
        sharded = distribute_tensor(x, mesh, [Shard(0)]).detach().requires_grad_()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            got = op.value(sharded, distribute_tensor(t, mesh, [Shard(0)]))
        said.append(" ".join(str(w.message) for w in caught))
        want = op.value(x, t)
        same(full(got), want)
        got.backward()
        want.backward()
        same(full(sharded.grad), x.grad)
    return said


# --- with what people use


class Classifier(torch.nn.Module):
    def __init__(self, criterion: torch.nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Linear(5, 6, dtype=torch.float64)
        self.head = torch.nn.Linear(6, 7, dtype=torch.float64)
        self.criterion = criterion or opreg.nn.CrossEntropyLoss(reduction="sum", label_smoothing=0.1)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return self.criterion(self.head(opreg.functional.mish(self.body(x))), target)


def gradients_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return {n.removeprefix("module."): full(p.grad) for n, p in model.named_parameters()}


def equal_gradients(model: torch.nn.Module, want: dict[str, Tensor]) -> None:
    got = gradients_of(model)
    assert got.keys() == want.keys()
    for name, gradient in want.items():
        same(got[name], gradient)


def alone(model: torch.nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a whole batch, some of it ignored, divided by the number of labels that count; and gradients."""
    loss = model(*batch()) / (batch()[1] != -100).sum()
    loss.backward()
    return loss.detach(), gradients_of(model)


def batch() -> tuple[Tensor, Tensor]:
    target = indices(7, 12)
    target[:4] = -100  # one process has few that count
    return draw(12, 5), target


def data_parallel() -> None:
    """DDP and FSDP2 take the mean over the processes: each has its sum, times their number, over the global count."""
    from torch.distributed.fsdp import fully_shard

    loss, gradients = alone(Classifier())
    x, target = (t.chunk(4)[dist.get_rank()] for t in batch())
    count = (target != -100).sum()
    dist.all_reduce(count)
    for model in (
        torch.nn.parallel.DistributedDataParallel(Classifier()),
        fully_shard(Classifier(), mesh=meshes()["4"]),
    ):
        part = model(x, target) * 4 / count
        part.backward()
        equal_gradients(model, gradients)
        mean = part.detach() / 4
        dist.all_reduce(mean)
        same(mean, loss)


def tensor_parallel() -> None:
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    loss, gradients = alone(Classifier())
    model = Classifier()
    plan = {"head": ColwiseParallel(use_local_output=False), "criterion": LossParallel()}
    model = parallelize_module(model, meshes()["4"], plan)
    part = model(*batch()) / (batch()[1] != -100).sum()
    same(part, loss)
    part.backward()
    equal_gradients(model, gradients)
    # modules that own the last layer keep a part of it
    for kind in (opreg.nn.ArcFace, opreg.nn.LinearCrossEntropyLoss):
        criterion = kind(6, 7, dtype=torch.float64)
        x, target = leaf(draw(9, 6)), indices(7, 9)
        for p in criterion.parameters():
            p.data.copy_(draw(*p.shape))
        want = criterion(x, target)
        want.backward()
        gradients, of_input = gradients_of(criterion), x.grad
        criterion.zero_grad()
        x.grad = None
        model = parallelize_module(criterion, meshes()["4"], LossParallel())
        got = model(x, target)
        same(got, want)
        got.backward()
        equal_gradients(model, gradients)
        same(x.grad, of_input)


def checkpointed_and_compiled() -> None:
    from torch.utils.checkpoint import checkpoint

    hidden, head, target = leaf(draw(6, 5)), leaf(draw(2, 5, seed=dist.get_rank())), indices(8, 6)

    def head_and_loss(hidden: Tensor, head: Tensor) -> Tensor:
        return vocab_parallel_linear_cross_entropy(hidden, head, target)

    def step(hidden: Tensor, head: Tensor) -> Tensor:
        return checkpoint(head_and_loss, hidden, head, use_reentrant=False)

    want = torch.autograd.grad(head_and_loss(hidden, head), (hidden, head))
    torch._dynamo.reset()
    for way in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        for ours, theirs in zip(torch.autograd.grad(way(hidden, head), (hidden, head)), want, strict=True):
            same(ours, theirs)


def partial_fc() -> None:
    features, target = leaf(draw(8, 5)), indices(11, 8)
    target[3] = -100
    for loss, module in (("arcface_loss", opreg.nn.ArcFace), ("amsoftmax_loss", opreg.nn.AMSoftmax)):
        features.grad = None
        whole = module(5, 11, dtype=torch.float64)
        whole.weight.data.copy_(draw(11, 5))
        want = whole(features, target)
        want.backward()
        head = opreg.nn.PartialFC(5, 11, loss=loss, dtype=torch.float64)
        head.weight.data.copy_(draw(11, 5)[own(11)])
        rank = dist.get_rank()
        x = leaf(features.chunk(4)[rank])
        got = head(x, target.chunk(4)[rank])
        same(got, want)
        got.backward()
        same(x.grad, features.grad.chunk(4)[rank])
        same(head.weight.grad, whole.weight.grad[own(11)])
    # a sample: the classes of the batch are in it, and centres that are not get no gradient
    head = opreg.nn.PartialFC(5, 400, sample_rate=0.1, dtype=torch.float64)
    target = indices(400, 8)
    here = target[(target >= own(400).start) & (target < own(400).stop)] - own(400).start
    places = head.sampled(target)
    assert places.shape == (10,)
    assert set(here.tolist()) <= set(places.tolist())
    head(leaf(features.chunk(4)[dist.get_rank()]), target.chunk(4)[dist.get_rank()]).backward()
    assert int((head.weight.grad.abs().sum(1) > 0).sum()) == 10


# --- an op of somebody else, with several results


def sine_and_cosine(input: Tensor, reduction: str = "mean", *, dtype: torch.dtype | None = None) -> Any:
    each = input.sin(), input.cos()
    reduced = each if reduction == "none" else tuple(getattr(t, reduction)() for t in each)
    return tuple(t.to(dtype or input.dtype) for t in reduced)


def several_results() -> None:
    """Each is split, or reduced over the processes, and each has a gradient of its own."""

    def samples(make: Any) -> Any:
        yield opreg.Sample((make.normal(3, 4),))

    op = opreg.register(
        opreg.Op(
            "distributed::sine_and_cosine", sine_and_cosine, opreg.meta.same("input"), samples,
            lambda make: iter(()), "a test",
            schema='(Tensor input, str reduction="mean", *, ScalarType? dtype=None) -> (Tensor sine, Tensor cosine)',
            kernels={"CPU": sine_and_cosine},
        )
    )  # fmt: skip
    mesh = meshes()["4"]
    for reduction in ("none", "mean", "sum"):
        x = leaf(draw(5, 3))
        sharded = distribute_tensor(x.detach(), mesh, [Shard(0)] * mesh.ndim).requires_grad_()
        want, got = op.value(x, reduction), op.value(sharded, reduction)
        for k in range(2):
            same(full(got[k]), want[k])
            weights = torch.linspace(0.5, 1.5, want[k].numel(), dtype=x.dtype).reshape(want[k].shape)
            of_one = torch.autograd.grad(want[k], x, weights, retain_graph=True)[0]
            (full(got[k]) * weights).sum().backward(retain_graph=True)
            same(full(sharded.grad), of_one)
            sharded.grad = None


def where_nothing_counts() -> None:
    """The mean over class indices that are all ignored is NaN, and has no gradient."""
    for op in of_namespace():
        if "ignore_index" not in op.arguments or not op.reduces:
            continue
        bounds = (bind(op.value, s.args, s.kwargs) for s in samples_of(op, 0))
        bound = next(b for b in bounds if b["target"].dim() and b["target"].dtype == torch.int64)
        bound |= {"reduction": "mean", "target": torch.full_like(bound["target"], bound["ignore_index"])}
        tensors = {n: a for n, a in bound.items() if isinstance(a, Tensor)}
        given: dict[str, list[Placement]] = {n: [Replicate()] for n in tensors}
        given |= {"input": [Shard(0)], "target": [Shard(0)]}
        compare(op, bound, tensors, {n: sharded(t, meshes()["4"], given[n]) for n, t in tensors.items()})
