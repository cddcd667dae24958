"""Box losses against what can be checked without them: rational arithmetic, plain Python with differences, the sums
that torchvision's functions are published as, torch's own autograd at ties."""

import math
from fractions import Fraction

import pytest
import torch

from conftest import DEVICE
from opreg.registry import of_namespace

EPS = 1e-7
NAMES = [op.short for op in of_namespace() if op.family == "box"]


def call(name, a, b, **options):
    return getattr(torch.ops.lossreg, name)(a, b, **options)


def random_boxes(*pairs, scale=1.0, dtype=torch.float64):
    corner, size = torch.rand(*pairs, 2, dtype=torch.float64), torch.rand(*pairs, 2, dtype=torch.float64)
    return (scale * torch.cat([corner, corner + 0.05 + size], -1)).to(DEVICE, dtype)


def integer_boxes(n, span=7):
    """Many that touch, coincide, hold each other or are nothing."""
    corners = torch.randint(0, span, (n, 2, 2)).sort(dim=1).values
    return corners.reshape(n, 4).to(DEVICE, torch.float64)


# The rational losses, in rational arithmetic.


def exact_parts(a, b):
    ax1, ay1, ax2, ay2, bx1, by1, bx2, by2 = (Fraction(v) for v in (*a, *b))
    overlap = [max(Fraction(0), min(ax2, bx2) - max(ax1, bx1)), max(Fraction(0), min(ay2, by2) - max(ay1, by1))]
    hull = [max(ax2, bx2) - min(ax1, bx1), max(ay2, by2) - min(ay1, by1)]
    size, target_size = [ax2 - ax1, ay2 - ay1], [bx2 - bx1, by2 - by1]
    intersection = overlap[0] * overlap[1]
    union = size[0] * size[1] + target_size[0] * target_size[1] - intersection
    rho2 = ((ax1 + ax2 - bx1 - bx2) / 2) ** 2 + ((ay1 + ay2 - by1 - by2) / 2) ** 2
    return intersection, union, hull, rho2, size, target_size


def exact(name, a, b, eps):
    intersection, union, (cw, ch), rho2, size, target_size = exact_parts(a, b)
    eps = Fraction(eps)
    loss = 1 - intersection / (union + eps)
    if name == "giou_loss":
        loss += (cw * ch - union) / (cw * ch + eps)
    if name in ("diou_loss", "eiou_loss"):
        loss += rho2 / (cw**2 + ch**2 + eps)
    if name == "eiou_loss":
        loss += sum((s - t) ** 2 / (c**2 + eps) for s, t, c in zip(size, target_size, (cw, ch), strict=True))
    return loss


@pytest.mark.parametrize("name", ["iou_loss", "giou_loss", "diou_loss", "eiou_loss"])
@pytest.mark.parametrize("eps", [EPS, 0.25])
def test_rational_losses(name, eps):
    for a, b in ((random_boxes(23), random_boxes(23)), (integer_boxes(200), integer_boxes(200))):
        want = [float(exact(name, p, t, eps)) for p, t in zip(a.tolist(), b.tolist(), strict=True)]
        got = call(name, a, b, reduction="none", eps=eps)
        torch.testing.assert_close(got.cpu(), torch.tensor(want, dtype=torch.float64), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", ["iou_loss", "giou_loss", "diou_loss", "eiou_loss"])
def test_without_eps_a_quotient_of_zeros_is_zero(name):
    """As for every eps > 0, however small."""
    a, b = integer_boxes(200, 3), integer_boxes(200, 3)
    want = [float(exact(name, p, t, Fraction(1, 10**40))) for p, t in zip(a.tolist(), b.tolist(), strict=True)]
    torch.testing.assert_close(call(name, a, b, reduction="none", eps=0.0).cpu(), torch.tensor(want).double())


# Every loss in plain Python, from the catalogue's lines. `frozen` holds the factors that the gradient takes for
# constants at the point where it is wanted: the differences then see what autograd sees.


def plain(name, c, eps, frozen=None, gamma=0.5, alpha=None, theta=4.0, delta=3.0, iou_mean=None):
    ax1, ay1, ax2, ay2, bx1, by1, bx2, by2 = c
    w, h, wt, ht = ax2 - ax1, ay2 - ay1, bx2 - bx1, by2 - by1
    inter = max(0, min(ax2, bx2) - max(ax1, bx1)) * max(0, min(ay2, by2) - max(ay1, by1))
    union = w * h + wt * ht - inter
    iou = inter / (union + eps)
    cw, ch = max(ax2, bx2) - min(ax1, bx1), max(ay2, by2) - min(ay1, by1)
    dx, dy = (ax1 + ax2) / 2 - (bx1 + bx2) / 2, (ay1 + ay2) / 2 - (by1 + by2) / 2
    c2 = cw**2 + ch**2 + eps
    diou = 1 - iou + (dx**2 + dy**2) / c2
    eiou = diou + (w - wt) ** 2 / (cw**2 + eps) + (h - ht) ** 2 / (ch**2 + eps)
    if name == "iou_loss":
        return 1 - iou, None
    if name == "giou_loss":
        return 1 - iou + (cw * ch - union) / (cw * ch + eps), None
    if name == "diou_loss":
        return diou, None
    if name == "ciou_loss":
        v = 4 / math.pi**2 * (math.atan2(wt, ht) - math.atan2(w, h)) ** 2
        factor = v / (1 - iou + v + eps) if frozen is None else frozen
        return diou + factor * v, factor
    if name == "eiou_loss":
        return eiou, None
    if name == "focal_eiou_loss":
        factor = iou**gamma if frozen is None else frozen
        return factor * eiou, factor
    if name == "alpha_iou_loss":
        return 1 - iou ** (3.0 if alpha is None else alpha), None
    if name == "siou_loss":
        sigma = math.hypot(dx, dy) + eps
        s = min(abs(dx), abs(dy)) / sigma
        g = 2 - 2 * s * math.sqrt(1 - s**2)
        distance = 2 - math.exp(-g * (dx / (cw + eps)) ** 2) - math.exp(-g * (dy / (ch + eps)) ** 2)
        shape = sum((1 - math.exp(-abs(p - q) / (max(p, q) + eps))) ** theta for p, q in ((w, wt), (h, ht)))
        return 1 - iou + (distance + shape) / 2, None
    assert name == "wiou_loss"
    factor = 1.0
    if iou_mean is not None:
        base, beta = 1.9 if alpha is None else alpha, (1 - iou) / max(iou_mean, eps)
        factor = beta / delta * math.exp((delta - beta) * math.log(base))  # base ** 1e7 would raise
    c2, factor = (c2, factor) if frozen is None else frozen
    return factor * math.exp((dx**2 + dy**2) / c2) * (1 - iou), (c2, factor)


PLAIN = [(name, {}) for name in NAMES] + [
    ("focal_eiou_loss", {"gamma": 0.0}),
    ("focal_eiou_loss", {"gamma": 1.3}),
    ("alpha_iou_loss", {"alpha": 0.5}),
    ("alpha_iou_loss", {"alpha": 2.7}),
    ("siou_loss", {"theta": 2.0}),
    ("siou_loss", {"theta": 5.5}),
    ("wiou_loss", {"iou_mean": 0.4}),
    ("wiou_loss", {"iou_mean": 0.7, "alpha": 1.4, "delta": 5.0}),
    ("wiou_loss", {"iou_mean": 0.0}),
]


@pytest.mark.parametrize(("name", "options"), PLAIN, ids=str)
@pytest.mark.parametrize("eps", [EPS, 0.1])
def test_plain_python(name, options, eps):
    """Values; and gradients against central differences, constant factors frozen."""
    a, b = random_boxes(17).requires_grad_(), random_boxes(17).requires_grad_()
    tensors = {"iou_mean": torch.tensor(options["iou_mean"], device=DEVICE)} if "iou_mean" in options else {}
    loss = call(name, a, b, **{**options, **tensors}, reduction="none", eps=eps)
    grads = torch.cat(torch.autograd.grad(loss.sum(), (a, b)), 1).tolist()
    # float32, as the op gets it
    options = {**options, **{k: t.item() for k, t in tensors.items()}}
    for got, grad, c in zip(loss.tolist(), grads, torch.cat([a, b], 1).tolist(), strict=True):
        value, frozen = plain(name, c, eps, **options)
        assert got == pytest.approx(value, rel=1e-12, abs=1e-12)
        for k in range(8):
            step = 1e-6
            ends = [plain(name, [*c[:k], c[k] + d, *c[k + 1 :]], eps, frozen, **options)[0] for d in (-step, step)]
            assert grad[k] == pytest.approx((ends[1] - ends[0]) / (2 * step), rel=1e-6, abs=1e-6)


# The sums that torchvision publishes, with torchvision's own arrangement of terms.


def published(kind, a, b, eps=EPS):
    x1, y1, x2, y2 = a.unbind(-1)
    x1g, y1g, x2g, y2g = b.unbind(-1)
    xk1, yk1 = torch.max(x1, x1g), torch.max(y1, y1g)
    xk2, yk2 = torch.min(x2, x2g), torch.min(y2, y2g)
    inter = torch.where((xk2 > xk1) & (yk2 > yk1), (xk2 - xk1) * (yk2 - yk1), torch.zeros_like(x1))
    union = (x2 - x1) * (y2 - y1) + (x2g - x1g) * (y2g - y1g) - inter
    iou = inter / (union + eps)
    xc1, yc1, xc2, yc2 = torch.min(x1, x1g), torch.min(y1, y1g), torch.max(x2, x2g), torch.max(y2, y2g)
    if kind == "generalized_box_iou_loss":
        area_c = (xc2 - xc1) * (yc2 - yc1)
        return 1 - (iou - (area_c - union) / (area_c + eps))
    diagonal = (xc2 - xc1) ** 2 + (yc2 - yc1) ** 2 + eps
    centers = ((x2 + x1) / 2 - (x1g + x2g) / 2) ** 2 + ((y2 + y1) / 2 - (y1g + y2g) / 2) ** 2
    diou = 1 - iou + centers / diagonal
    if kind == "distance_box_iou_loss":
        return diou
    w, h, wg, hg = x2 - x1, y2 - y1, x2g - x1g, y2g - y1g
    v = 4 / math.pi**2 * (torch.atan(wg / hg) - torch.atan(w / h)) ** 2
    with torch.no_grad():
        alpha = v / (1 - iou + v + eps)
    return diou + alpha * v


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("giou_loss", "generalized_box_iou_loss"),
        ("diou_loss", "distance_box_iou_loss"),
        ("ciou_loss", "complete_box_iou_loss"),
    ],
)
def test_published_definitions(name, kind):
    a, b = random_boxes(3, 11).requires_grad_(), random_boxes(3, 11).requires_grad_()
    for reduction, reduce in (("none", lambda x: x), ("mean", torch.mean), ("sum", torch.sum)):
        got, want = call(name, a, b, reduction=reduction), reduce(published(kind, a, b))
        torch.testing.assert_close(got, want)
        ours, theirs = (torch.autograd.grad(loss.sum(), (a, b)) for loss in (got, want))
        torch.testing.assert_close(ours, theirs)


# Kinks.


def with_torch(a, b):
    """1 − iou + (E − U)/(E + eps) and the squares of the sizes' differences, of torch.minimum, torch.maximum, clamp."""
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    inter = (high - low).clamp(min=0).prod(-1)
    enclosing = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(-1)
    union = (a[:, 2:] - a[:, :2]).prod(-1) + (b[:, 2:] - b[:, :2]).prod(-1) - inter
    return 1 - inter / (union + EPS) + (enclosing - union) / (enclosing + EPS)


def test_ties_are_shared_as_torch_does():
    a, b = integer_boxes(300, 4).requires_grad_(), integer_boxes(300, 4).requires_grad_()
    got, want = call("giou_loss", a, b, reduction="none"), with_torch(a, b)
    torch.testing.assert_close(got, want)
    ours, theirs = (torch.autograd.grad(loss.sum(), (a, b)) for loss in (got, want))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)
    ties = (a.view(-1, 2, 2)[:, :, None] == b.view(-1, 2, 2)[:, None]).any(-1)
    assert ties.sum() > 100


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("eps", [EPS, 0.0])
def test_degenerate_boxes_are_finite(name, dtype, eps):
    """Identical, touching, apart, without area: finite values and gradients; identical boxes lose and pull nothing."""
    a, b = (integer_boxes(400, 3).to(dtype).requires_grad_() for _ in range(2))
    loss = call(name, a, b, reduction="none", eps=eps, dtype=torch.float64)
    assert loss.isfinite().all()
    for grad in torch.autograd.grad(loss.sum(), (a, b)):
        # at eps = 1e-7 a slope of 1 / eps has no float16
        assert grad.isfinite().all() or (dtype == torch.float16 and eps > 0 and not grad.isnan().any())
    a = random_boxes(9).to(dtype).requires_grad_()
    b = a.detach().clone().requires_grad_()
    loss = call(name, a, b, dtype=torch.float64, eps=eps)
    assert abs(loss) <= 1e-5
    for grad in torch.autograd.grad(loss, (a, b)):
        assert grad.abs().max() <= 1e-3


def test_the_gradient_of_alpha_iou_is_zero_without_overlap():
    a, b = torch.tensor([[0.0, 0, 2, 1], [0, 0, 1, 1]]).requires_grad_(), torch.tensor([[2.0, 0, 3, 1], [3, 3, 4, 4]])
    for alpha in (0.5, 1.0, 2.0, 3.0):
        loss = call("alpha_iou_loss", a, b, alpha=alpha, reduction="none")
        assert loss.tolist() == [1, 1]
        assert (torch.autograd.grad(loss.sum(), a)[0] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_almost_identical_boxes_keep_their_digits(name):
    """In float32, at pixel coordinates: 1 − iou is a sum of positive areas, not a difference of 1 and nearly 1."""
    a = torch.tensor([[100.0, 200.0, 356.0, 456.0]], device=DEVICE)
    b = a + torch.tensor([2**-12, 0, 0, 0], device=DEVICE)
    got, want = call(name, a, b), call(name, a.double(), b.double())
    if name == "alpha_iou_loss":  # of a power
        torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-7)
    else:
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "largest"), [(torch.float32, 1e4), (torch.float16, 6e4)], ids=str)
def test_pixel_coordinates(name, dtype, largest):
    a, b = (random_boxes(50, scale=largest / 2.05, dtype=dtype).requires_grad_() for _ in range(2))
    loss = call(name, a, b, reduction="none", dtype=torch.float32)
    exact = [t.detach().double().requires_grad_() for t in (a, b)]
    want = call(name, *exact, reduction="none")
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-6)
    ours, theirs = torch.autograd.grad(loss.sum(), (a, b)), torch.autograd.grad(want.sum(), exact)
    for got, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got.double() * largest, expected * largest, rtol=2e-2, atol=2e-2)


# Shapes, layouts, dtypes.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3), (2, 3, 5), (257,), (4097,)])
def test_leading_dimensions(name, shape):
    a, b = random_boxes(*shape).requires_grad_(), random_boxes(*shape)
    loss = call(name, a, b, reduction="none")
    assert loss.shape == shape
    flat = call(name, a.reshape(-1, 4), b.reshape(-1, 4), reduction="none")
    assert torch.equal(loss.flatten(), flat)
    torch.testing.assert_close(call(name, a, b), flat.mean())
    torch.testing.assert_close(call(name, a, b, reduction="sum"), flat.sum())
    (grad,) = torch.autograd.grad(loss.sum(), a)
    assert torch.equal(grad, torch.autograd.grad(flat.sum(), a)[0])


def layouts(t):
    """The same boxes (n, m, 4): coordinates first in memory, every other row, a part of longer rows, one repeated."""
    n, m, _ = t.shape
    yield t.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    yield t.repeat_interleave(2, 1)[:, ::2]
    yield torch.cat([t, t.new_zeros(n, m, 4)], -1)[..., :4]  # rows of 8: still whole boxes in one load
    yield torch.cat([t.new_zeros(n, m, 1), t], -1)[..., 1:]
    yield t.transpose(0, 1).contiguous().transpose(0, 1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_layouts(name, dtype):
    a, b = random_boxes(5, 67, dtype=dtype), random_boxes(5, 67, dtype=dtype)
    weights = torch.rand(5, 67, device=DEVICE, dtype=dtype)
    want = call(name, a.requires_grad_(), b.requires_grad_(), reduction="none")
    want_grads = torch.autograd.grad(want, (a, b), weights)
    for x in layouts(a.detach()):
        for y in (b.detach(), next(iter(layouts(b.detach())))):
            x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
            got = call(name, x, y, reduction="none")
            torch.testing.assert_close(got, want, rtol=2e-3 if dtype == torch.float16 else 1e-6, atol=1e-6)
            grads = torch.autograd.grad(got, (x, y), weights.t().contiguous().t())
            for mine, other in zip(grads, want_grads, strict=True):
                torch.testing.assert_close(mine, other, rtol=2e-3 if dtype == torch.float16 else 1e-5, atol=1e-5)


def test_one_target_for_all():
    """An expanded target: stride 0 along the pairs, and its gradient has the whole shape."""
    a, b = random_boxes(9), random_boxes(1)
    got = call("giou_loss", a, b.expand(9, 4), reduction="none")
    torch.testing.assert_close(got, call("giou_loss", a, b.expand(9, 4).contiguous(), reduction="none"))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
def test_integer_targets(dtype):
    a, b = random_boxes(9, scale=5), integer_boxes(9)
    assert torch.equal(call("ciou_loss", a, b.to(dtype)), call("ciou_loss", a, b))


def test_iou_mean_is_a_constant_of_any_dtype():
    a, b = random_boxes(5, dtype=torch.float32).requires_grad_(), random_boxes(5, dtype=torch.float32)
    want = call("wiou_loss", a, b, iou_mean=torch.tensor(0.5, device=DEVICE))
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        mean = torch.tensor(0.5, dtype=dtype, device=DEVICE)
        got = call("wiou_loss", a, b, iou_mean=mean)
        assert got.dtype == torch.float32
        assert torch.equal(got, want)
        mean.requires_grad_()
        loss = call("wiou_loss", a, b, iou_mean=mean)
        grad_mean, grad = torch.autograd.grad(loss, (mean, a), allow_unused=True)
        assert grad_mean is None
        assert torch.equal(grad, torch.autograd.grad(want, a, retain_graph=True)[0])


def test_wise_iou_focuses_on_ordinary_pairs():
    """At β = δ the weight is 1; it falls to 0 for a perfect pair and for an outlier."""
    a = torch.tensor([[0.0, 0, 2, 2]], dtype=torch.float64, device=DEVICE)
    b = torch.tensor([[1.0, 0, 3, 2]], dtype=torch.float64, device=DEVICE)  # 1 − iou = 2/3

    def weight(mean):
        mean = torch.tensor(mean, dtype=torch.float64, device=DEVICE)
        return (call("wiou_loss", a, b, iou_mean=mean, eps=0.0) / call("wiou_loss", a, b, eps=0.0)).item()

    assert weight(2 / 9) == pytest.approx(1, rel=1e-12)
    assert weight(1e-3) < 1e-100
    assert weight(1e3) < 0.01


@pytest.mark.parametrize("name", NAMES)
def test_a_nan_shows_in_its_pair_alone(name):
    a, b = random_boxes(5).requires_grad_(), random_boxes(5)
    for k in range(4):
        for which in range(2):
            pair = [a.detach().clone(), b.clone()]
            pair[which][2, k] = math.nan
            loss = call(name, *pair, reduction="none")
            assert loss.isnan().tolist() == [False, False, True, False, False]
