"""More ways to write losses out, for fuzz_programs.py: each with near misses that no op computes."""

import torch

from fuzz_programs import WIDE, Generator, piece

SHAPES = ((5,), (2, 3), (2, 3, 4))


@piece("gelu", "activations")
def gelu(g: Generator) -> None:
    shape = g.one(*SHAPES)
    x = g.before(g.real(*shape), shape)
    tanh = g.one("", ", approximate='tanh'")
    called = g.one("F.gelu", "torch._C._nn.gelu", "torch.ops.aten.gelu.default")
    g.after(g.let(g.one(f"{called}({x}{tanh})", f"{called}({x}{tanh})", f"{g.module(torch.nn.GELU())}({x})")))


def hard(g: Generator, *shape: int) -> str:
    """A target of zeros and ones, as the graph shows; as a near miss, one that holds other numbers."""
    if g.miss == "soft":
        return g.let(g.one("{}.clamp(0, 1)", "{} * 0.5", "torch.sigmoid({})").format(g.real(*shape, grad=0)))
    if g.miss == "two":
        bits = g.bits(*shape)
        return g.let(f"({bits} > 0.5).to({bits}.dtype) * 2")
    y = g.real(*shape, grad=0)
    cast = g.one(f"to({g.dtype})", f"to({g.dtype})", f"type_as({y})")
    made = g.one(
        f"({y} > 0.2)", f"({y} == {y}.max())", f"({y} > 0).long()", f"(({y} > -1) & ({y} < 1))", f"~({y} <= 0)"
    )
    t = g.let(g.one(f"{made}.{cast}", f"1 - {made}.{cast}"))
    return t


@piece("focal_loss", "focal of zeros and ones", "soft", "two", "another power", "another tensor")
def hard_focal(g: Generator) -> None:
    shape = g.one(*SHAPES)
    x = g.before(g.real(*shape), shape)
    t = hard(g, *shape)
    gamma, alpha = g.one(2, 2.0, 1.5, 3, 0.5), g.one(0.25, 0.5, 0.75)
    other_gamma = g.near("another power", gamma, gamma + 1)
    z = g.near("another tensor", x, g.real(*shape, share=False)) if g.miss else x
    form = (
        "split"
        if g.miss in ("another power", "two alphas")
        else g.one("exp", "logsigmoid", "split", "softplus", "where")
    )
    if form == "split":  # both parts of the cross entropy with factors of their own
        p = g.let(f"torch.sigmoid({z})")
        positive = g.let(f"-((1 - {p}) ** {gamma}) * {t} * F.logsigmoid({x})")
        negative = g.let(f"-({p} ** {other_gamma}) * (1 - {t}) * F.logsigmoid(-{x})")
        if g.chance(0.5):
            return g.after(g.plus(g.times(alpha, positive), g.times(1 - alpha, negative)))
        return g.after(g.plus(positive, negative))
    ce = g.let(f"F.binary_cross_entropy_with_logits({x}, {t}, reduction='none')")
    if form == "exp":
        weight = g.let(f"(1 - torch.exp(-{ce})) ** {gamma}" if z == x else f"(1 - torch.sigmoid({z})) ** {gamma}")
    elif form == "logsigmoid":
        weight = g.let(f"(F.logsigmoid(-{z} * ({t} * 2 - 1)) * {gamma}).exp()")
    elif form == "softplus":
        weight = g.let(f"torch.exp(-{gamma} * {t} * {z} - {gamma} * F.softplus(-{z}))")
    else:
        p = g.let(f"torch.sigmoid({z})")
        weight = g.let(f"torch.where({t} == 1, 1 - {p}, {p}) ** {gamma}")
    y = g.times(weight, ce)
    if g.chance(0.5):
        factor = g.one(f"torch.where({t} > 0.5, {alpha}, {1 - alpha})", f"{alpha} * {t} + {1 - alpha} * (1 - {t})")
        y = g.let(f"({factor}) * {y}")
    g.after(y)


@piece("softmax_focal_loss", "focal of zeros and ones", "another target", "another dimension", "a factor")
def focal_of_gathered(g: Generator) -> None:
    images = g.chance(0.4)
    shape, rows = ((2, 3, 2), (2, 2)) if images else ((4, 3), (4,))
    x, t = g.before(g.real(*shape), shape), g.index(3, *rows)
    d = g.near("another dimension", 1, 0)
    logp = g.let(f"F.log_softmax({x}, {d})")
    picked = g.let(f"{logp}.gather(1, {t}.unsqueeze(1)).squeeze(1)")
    other = picked
    if g.miss == "another target":
        other = g.let(f"{logp}.gather(1, {t}.flip(0).unsqueeze(1)).squeeze(1)")
    power = g.near("a factor", f"(1 - torch.exp({other}))", f"(1 - 0.9 * torch.exp({other}))")
    y = g.let(f"-{power} ** {g.one(2, 1.5, 3)} * {picked}")
    if g.chance(0.4):
        w = g.real(*rows)
        y = g.times(w, y)
    g.after(y)


@piece("softmax_focal_loss", "focal of zeros and ones", "another dimension", "a factor", "weights by class", "detached")
def focal_of_all_classes(g: Generator) -> None:
    shape, rows = ((2, 3, 3), (2, 3)) if g.chance(0.4) else ((3, 3), (3,))
    x, t = g.before(g.real(*shape), shape), g.index(3, *rows)
    logp = g.let(f"F.log_softmax({x}, {g.near('another dimension', 1, 0)})")
    p = g.let(f"torch.exp({logp})")
    miss = g.near("detached", f"(1 - {g.near('a factor', p, f'0.9 * {p}')})", f"(1 - {p}).detach()")
    power = g.let(g.one("{} ** {}", "torch.pow({}, {})").format(miss, g.one(2, 1.5, 3)))
    weight = f", weight={g.unit(3, grad=0)}" if g.miss == "weights by class" else ""
    options = g.one("", ", ignore_index=1") + g.one("", ", reduction='sum'", ", reduction='none'")
    g.after(g.let(f"F.nll_loss({g.times(power, logp)}, {t}{weight}{options})"))


# differences


@piece("mse_loss", "differences", "another power", "another tensor", "broadcast")
def squares(g: Generator) -> None:
    shape = (2, 3) if g.miss == "broadcast" else g.one(*SHAPES)
    x, t = g.before(g.real(*shape, share=False), shape), g.real(*g.near("broadcast", shape, (1, 3)), share=False)
    d = g.let(g.one(f"{x} - {t}", f"{t} - {x}"))
    d = g.near("another tensor", d, f"({x} * {t})")
    y = g.let(f"{d} ** 4" if g.miss == "another power" else g.one(f"{d} ** 2", f"{d} * {d}", f"torch.square({d})"))
    total(g, y, shape)


@piece("l1_loss", "differences", "a product", "broadcast", "signed")
def distances(g: Generator) -> None:
    shape = (2, 3) if g.miss == "broadcast" else g.one(*SHAPES)
    x, t = g.before(g.real(*shape, share=False), shape), g.real(*g.near("broadcast", shape, (1, 3)), share=False)
    d = g.near("a product", f"{x} - {t}", f"{x} * {t}")
    total(g, g.let(f"({d})" if g.miss == "signed" else g.one(f"({d}).abs()", f"torch.abs({d})")), shape)


def total(g: Generator, y: str, shape: tuple[int, ...]) -> None:
    """A reduction, perhaps by steps, with weights, or under a mask."""
    m = g.bits(*shape)
    g.results.append(
        g.let(
            g.one(f"{y}.mean()", f"{y}.sum()", f"{y}.mean(-1).mean()", f"{y}.sum(-1).sum()", f"{y}.sum(-1).mean()",
                  f"({y} * {m}).sum() / ({m}.sum() + 1)", f"({y} * {m}).mean()", f"{y}.flatten().mean(0)",
                  f"torch.where({m} > 0.5, {y}, 0.0).sum()")
        )
    )  # fmt: skip


@piece("huber_loss", "differences", "two deltas", "another factor")
def huber_by_clamp(g: Generator) -> None:
    shape = g.one(*SHAPES)
    x, t = g.before(g.real(*shape, share=False), shape), g.real(*shape, share=False)
    delta = g.one(0.5, 1.345, 2.5)
    d = g.let(f"({x} - {t}).abs() + 0.0")
    d = g.let(f"torch.abs({x} - {t})") if g.chance(0.8) else d
    near = g.let(g.one(f"{d}.clamp(max={delta})", f"torch.clamp({d}, max={delta})"))
    other, half = g.near("two deltas", delta, delta + 0.5), g.near("another factor", 0.5, 0.6)
    g.after(g.let(f"{half} * {near} ** 2 + {other} * ({d} - {near})"))


# likelihoods


@piece("gaussian_nll_loss", "likelihoods", "not clamped", "two variances", "another constant", dtypes=WIDE)
def gaussian(g: Generator) -> None:
    shape = g.one(*SHAPES)
    x, t = g.before(g.real(*shape, share=False), shape), g.real(*shape, share=False)
    raw = g.real(*shape, share=False)
    form = g.one("scale", "log") if g.miss == "not clamped" else g.one("variance", "scale", "log")
    full = f" + {0.5 * 1.8378770664093453}" if g.chance(0.3) else ""
    if form == "variance":
        v = g.let(f"F.softplus({raw}) + 0.1")
        w = g.let(f"F.softplus({t}) + 0.1") if g.miss == "two variances" else v
        half = g.near("another constant", 0.5, 0.4)
        return g.after(g.let(f"{half} * torch.log({v}) + 0.5 * ({x} - {t}) ** 2 / {w}{full}"))
    if form == "scale":
        s = g.let(g.near("not clamped", f"{raw}.clamp(-3, 3).exp()", f"{raw}.exp()"))
        w = g.let(f"{t}.clamp(-3, 3).exp()") if g.miss == "two variances" else s
        two = g.near("another constant", 2, 3)
        return g.after(g.let(f"torch.log({s}) + ({x} - {t}) ** 2 / ({two} * {w} ** 2){full}"))
    s = g.let(g.near("not clamped", f"{raw}.clamp(-5, 5)", f"{raw} * 1"))
    w = g.let(f"{t}.clamp(-5, 5)") if g.miss == "two variances" else s
    part = g.near("another constant", 0.5, 0.25)
    return g.after(g.let(f"0.5 * torch.exp(-{s}) * ({x} - {t}) ** 2 + {part} * {w}{full}"))


@piece("kl_div", "likelihoods", "another weight", dtypes=WIDE)
def divergence(g: Generator) -> None:
    x, t = g.before(g.real(2, 3), (2, 3)), g.real(2, 3, share=False)
    p, q = g.let(f"F.log_softmax({t}, 1)"), g.let(f"F.log_softmax({x}, 1)")
    weight = g.near("another weight", p, q)
    g.after(g.let(f"torch.exp({weight}) * ({p} - {q})"))


# pairs


@piece("soft_margin_loss", "margins", "a shift", "another tensor")
def logistic(g: Generator) -> None:
    shape = g.one(*SHAPES)
    x, t = g.before(g.real(*shape), shape), g.signs(*shape)
    z = g.let(g.one(f"{x} * {t}", f"{t} * {x}") + g.near("a shift", "", " + 0.1"))
    y = g.let(g.near("another tensor", f"F.logsigmoid({z})", f"F.logsigmoid(-{z})"))
    g.results.append(g.let(g.one(f"-{y}.mean()", f"-({y}.sum(-1)).mean()", f"({y} * -1).sum()")))


@piece("margin_ranking_loss", "margins", "a sum", "clamped above", "two targets", dtypes=WIDE)
def ranking(g: Generator) -> None:
    shape = g.one(*SHAPES)
    x, y, t = g.real(*shape, share=False), g.real(*shape, share=False), g.signs(*shape)
    x = g.let(f"{x} * 1.0137 + 0.0113")  # not at the kink
    margin, sign = g.one(0.3, 0.5, 1.0), g.one("-", "+")
    apart = g.near("a sum", f"({x} - {y})", f"({x} + {y})")
    apart = g.near("two targets", apart, f"({x} - {t} * {y})")
    z = g.let(f"{margin} {sign} {t} * {apart}")
    kinds = (f"F.relu({z})", f"{z}.clamp(min=0)", f"torch.relu({z})")
    g.after(g.let(f"{z}.clamp(max=0)" if g.miss == "clamped above" else g.one(*kinds)))


@piece("triplet_margin_loss", "margins", "another degree", "one anchor", "no margin", dtypes=WIDE)
def triplet(g: Generator) -> None:
    a, p, n = (g.real(3, 5, share=False) for _ in range(3))
    degree = g.near("another degree", "", ", p=1")
    first = g.let(f"F.pairwise_distance({a}, {p}{degree})")
    second = g.let(f"F.pairwise_distance({g.near('one anchor', a, p)}, {n})")
    margin = g.near("no margin", g.one(0.2, 1.0), 0)
    g.after(g.let(g.one(f"F.relu({first} - {second} + {margin})", f"({margin} + {first} - {second}).clamp(min=0)")))


# classes


@piece("cross_entropy", "scores", "another target", "another dimension", "another row", dtypes=WIDE)
def by_logsumexp(g: Generator) -> None:
    x, t = g.before(g.real(4, 3), (4, 3)), g.index(3, 4)
    d = g.near("another dimension", g.one(1, -1), 0) if g.miss != "another dimension" else 0
    norm = g.let(f"torch.logsumexp({x}, {d})" if d != 0 else f"torch.logsumexp({x}[:3], 1)[{t}]")
    target = g.near("another target", t, f"(({t} + 1) % 3)")
    z = g.near("another row", x, f"{x}.flip(0)")
    picked = g.let(g.one(f"{z}.gather(1, {target}[:, None]).squeeze(1)", f"{z}[torch.arange(4), {target}]"))
    if g.miss == "another target":
        norm = g.let(f"torch.logsumexp({x} * 1.5, 1)")
    g.after(g.minus(norm, picked))


@piece("cross_entropy", "scores", "another dimension", "weights by class", "two of a row", dtypes=WIDE)
def by_one_hot(g: Generator) -> None:
    x, t = g.before(g.real(4, 3), (4, 3)), g.index(3, 4)
    logp = g.let(f"F.log_softmax({x}, {g.near('another dimension', 1, 0)})")
    hot = g.let(g.one(f"F.one_hot({t}, 3)", f"F.one_hot({t}, 3).to({g.dtype})",
                      f"torch.zeros_like({x}).scatter(1, {t}.unsqueeze(1), 1.0)"))  # fmt: skip
    hot = g.near("two of a row", hot, f"({hot} + F.one_hot(({t} + 1) % 3, 3))")
    product = g.let(g.one(f"{hot} * {logp}", f"{logp} * {hot}"))
    if g.miss == "weights by class":
        product = g.let(f"{product} * {g.unit(3, grad=0)}")
        return g.results.append(g.let(f"-{product}.sum(1)"))
    g.results.append(
        g.let(g.one(f"-{product}.sum(1)", f"-({product}).sum()", f"-{product}.sum(-1).mean()", f"-{product}.mean()"))
    )


# regions


@piece("dice_loss", "channels", "two smooths", "probabilities", "another dimension", "unsmoothed", "one square")
def dice_of_channels(g: Generator) -> None:
    shape = g.one((2, 3, 4), (2, 1, 3, 2))
    x, t = g.before(g.real(*shape), shape), g.one(g.bits, g.unit)(*shape)
    over = tuple(range(2, len(shape)))
    over = g.one(over, (0, *over)) if g.miss != "another dimension" else (1,)
    p = g.let(f"torch.sigmoid({x})") if g.miss != "probabilities" else g.unit(*shape)
    squares = g.chance(0.3) or g.miss == "one square"
    smooth = g.one(1, 1e-3, 1e-5)
    inter = g.let(f"torch.sum({p} * {t}, dim={over})")
    first = f"{p} ** 2" if squares else p
    second = f"{t} ** 2" if squares and g.miss != "one square" else t
    both = g.let(f"({first}).sum({over}) + ({second}).sum({over})")
    top, bottom = g.near("unsmoothed", smooth, 0), g.near("two smooths", smooth, 0.5)
    g.after(g.let(f"1 - (2 * {inter} + {top}) / ({both} + {bottom})"))


def regions(g: Generator) -> tuple[str, str, str]:
    """What logits and target share, and the size of each, over samples, channels, or the batch."""
    shape = g.one((2, 3, 4), (2, 1, 3, 2))
    x, t = g.before(g.real(*shape), shape), g.one(g.bits, g.unit)(*shape)
    p = g.let(f"torch.sigmoid({x})") if g.miss != "probabilities" else g.unit(*shape)
    pixels = tuple(range(2, len(shape)))
    over = g.one(pixels, (0, *pixels), (1, *pixels), ())
    over = g.near("another dimension", over, (1,))
    into = f", dim={over}" if over else ""
    return g.let(f"torch.sum({p} * {t}{into})"), g.let(f"torch.sum({p}{into})"), g.let(f"torch.sum({t}{into})")


@piece("jaccard_loss", "channels", "two smooths", "probabilities", "another dimension", "twice")
def jaccard_written(g: Generator) -> None:
    shared, predicted, true = regions(g)
    smooth, again = g.one(1, 1e-3), g.near("twice", 1, 2)
    other = g.near("two smooths", smooth, 0.5)
    union = g.let(g.one(f"{predicted} + {true} - {shared}", f"{true} + ({predicted} - {shared})"))
    g.after(g.let(f"1 - ({again} * {shared} + {smooth}) / ({union} + {other})"))


@piece("tversky_loss", "channels", "two smooths", "probabilities", "another dimension")
def tversky_written(g: Generator) -> None:
    shared, predicted, true = regions(g)
    alpha = g.one(0.3, 0.75, 2.0)
    smooth, beta = g.one(1, 1e-3), g.one(1 - alpha, 0.6)
    other = g.near("two smooths", smooth, 0.5)
    wrong, missed = g.let(f"{predicted} - {shared}"), g.let(f"{true} - {shared}")
    bottom = g.let(f"{shared} + {alpha} * {wrong} + {beta} * {missed} + {other}")
    g.after(g.let(f"1 - ({shared} + {smooth}) / {bottom}"))


# activations, alone and of a gate


def gelu_of(g: Generator, x: str) -> str:
    """GELU as a call or written out, of either kind; as a near miss, with another number or of two tensors."""
    z = g.near("another tensor", x, g.real(*g.inputs[x].shape, share=False)) if g.miss == "another tensor" else x
    half = g.near("another number", 0.5, 0.6)
    if g.chance(0.5):
        inner = g.one(f"{z} / math.sqrt(2)", f"{z} / math.sqrt(2.0)", f"{z} * 0.7071067811865475", f"{z} * 0.5**0.5")
        if g.chance(0.2):
            return g.let(f"{half} * {x} * torch.erfc(-({inner}))")
        return g.let(g.one(f"{half} * {x} * (1 + torch.erf({inner}))", f"{x} * {half} * (torch.erf({inner}) + 1.0)"))
    cube = g.let(g.one(f"{z} ** 3", f"torch.pow({z}, 3.0)", f"{z} * {z} * {z}"))
    inner = g.let(
        g.one(f"math.sqrt(2.0 / math.pi) * ({z} + 0.044715 * {cube})", f"0.7978845608 * ({z} + 0.044715 * {cube})")
    )
    return g.let(g.one(f"{half} * {x} * (1.0 + torch.tanh({inner}))", f"({x} + {x} * torch.tanh({inner})) * {half}"))


@piece("gelu", "written activations", "another number", "another tensor", dtypes=WIDE)
def gelu_written(g: Generator) -> None:
    g.after(gelu_of(g, g.real(*g.one(*SHAPES), share=False)))


@piece("quick_gelu", "written activations", "another number", "another tensor", dtypes=WIDE)
def quick_gelu_written(g: Generator) -> None:
    shape = g.one(*SHAPES)
    x = g.before(g.real(*shape), shape)
    z = g.near("another tensor", x, g.real(*shape, share=False)) if g.miss else x
    g.after(g.times(x, g.call("sigmoid", g.times(z, g.near("another number", 1.702, 1.7)))))


@piece("relu_squared", "written activations", "another power", "another tensor", dtypes=WIDE)
def relu_squared_written(g: Generator) -> None:
    shape = g.one(*SHAPES)
    x = g.before(g.real(*shape), shape)
    y = g.let(g.one(f"F.relu({x})", f"torch.relu({x})", f"{x}.clamp(min=0)"))
    if g.miss == "another tensor":
        return g.after(g.times(y, g.let(f"F.relu({g.real(*shape, share=False)})")))
    g.after(g.let(f"{y} ** 3" if g.miss == "another power" else g.one(f"{y} ** 2", f"torch.square({y})", f"{y} * {y}")))


def halves(g: Generator) -> tuple[str, str, tuple[int, ...]]:
    """Two tensors of one shape: halves of one, or two; as a near miss, the second is broadcast."""
    if g.miss == "broadcast":
        return g.real(2, 3, share=False), g.real(1, 3, share=False), (2, 3)
    if g.chance(0.5):
        shape = g.one(*SHAPES)
        return g.real(*shape, share=False), g.real(*shape, share=False), shape
    both = g.real(2, 6)
    gate, up = g.one(
        (f"{both}[:, :3]", f"{both}[:, 3:]"), (f"{both}[:, ::2]", f"{both}[:, 1::2]"),
        (f"{both}.chunk(2, -1)[1]", f"{both}.chunk(2, -1)[0]"),
    )  # fmt: skip
    return g.let(gate), g.let(up), (2, 3)


@piece("swiglu", "gates", "broadcast", "another tensor", "a sum")
def swiglu_written(g: Generator) -> None:
    gate, up, shape = halves(g)
    z = g.near("another tensor", gate, g.real(*shape, share=False)) if g.miss else gate
    if z == gate and g.chance(0.5):
        opened = g.let(g.one(f"F.silu({gate})", f"{g.module(torch.nn.SiLU())}({gate})"))
    else:
        opened = g.times(gate, g.call("sigmoid", g.times(z, g.one(1.5, 0.3)) if g.chance(0.5) else z))
    g.after(g.plus(opened, up) if g.miss == "a sum" else g.times(opened, up))


@piece("geglu", "gates", "broadcast", "another number", "a sum", dtypes=WIDE)
def geglu_written(g: Generator) -> None:
    gate, up, _ = halves(g)
    tanh = g.one("", ", approximate='tanh'")
    opened = gelu_of(g, gate) if g.miss == "another number" or g.chance(0.5) else g.let(f"F.gelu({gate}{tanh})")
    g.after(g.plus(opened, up) if g.miss == "a sum" else g.times(opened, up))


@piece("clamped_swiglu", "gates", "broadcast", "another bound", "without one", dtypes=WIDE)
def clamped_swiglu_written(g: Generator) -> None:
    gate, up, _ = halves(g)
    limit, alpha = g.one(7.0, 0.5), g.one(1.702, 1.0)
    opened = g.let(g.one(f"{gate}.clamp(max={limit})", f"{gate}.clamp(min=None, max={limit})"))
    bound = g.near("another bound", limit, limit + 0.25)
    bounded = g.let(f"{up}.clamp(min=-{bound}, max={bound})")
    opened = g.times(opened, g.call("sigmoid", g.times(opened, alpha)))
    g.after(g.times(opened, bounded if g.miss == "without one" else g.plus(bounded, 1)))


# robust losses


def apart(g: Generator) -> str:
    shape = (2, 3) if g.miss == "broadcast" else g.one(*SHAPES)
    x, t = g.before(g.real(*shape, share=False), shape), g.real(*g.near("broadcast", shape, (1, 3)), share=False)
    return g.let(g.one(f"{x} - {t}", f"{t} - {x}"))


@piece("charbonnier_loss", "robust", "broadcast", "of the absolute value", dtypes=WIDE)
def charbonnier_written(g: Generator) -> None:
    d, eps = apart(g), g.one(1e-3, 0.5)
    square = g.let(f"{d}.abs()" if g.miss == "of the absolute value" else g.one(f"{d} ** 2", f"{d} * {d}"))
    inner = g.plus(square, eps**2)
    g.after(g.let(g.one(f"torch.sqrt({inner})", f"({inner}) ** 0.5", f"{inner}.sqrt()")))


@piece("log_cosh_loss", "robust", "broadcast", "another number", dtypes=WIDE)
def log_cosh_written(g: Generator) -> None:
    d = apart(g)
    if not g.miss and g.chance(0.4):
        return g.after(g.let(f"torch.log(torch.cosh({d}))"))
    if g.chance(0.3):
        d = g.let(f"{d}.abs()")
    two = g.near("another number", 2, 2.5)
    soft = g.let(g.one(f"F.softplus(-{two} * {d})", f"torch.log1p(torch.exp({d} * -{two}))"))
    g.after(g.let(f"{d} + {soft} - math.log(2)"))


@piece("quantile_loss", "robust", "broadcast", "another number", dtypes=WIDE)
def quantile_written(g: Generator) -> None:
    d, q = apart(g), g.one(0.9, 0.1, 0.5, 0.25)
    rest = g.near("another number", 1 - q, 1.1 - q)
    below = g.let(g.one(f"({d} < 0).float()", f"({d} < 0).to({d}.dtype)"))
    g.after(
        g.let(
            g.one(
                f"torch.maximum({q} * {d}, -{rest} * {d})", f"torch.max(-{rest} * {d}, {q} * {d})",
                f"torch.where({d} >= 0, {q} * {d}, -{rest} * {d})", f"{d} * ({q} - {q + rest} * {below})",
                f"{q} * F.relu({d}) + {rest} * F.relu(-{d})",
            )
        )
    )  # fmt: skip


@piece("wing_loss", "robust", "broadcast", "a step", dtypes=WIDE)
def wing_written(g: Generator) -> None:
    d, width, curvature = g.let(f"({apart(g)}).abs()"), g.one(10.0, 1.0), g.one(2.0, 0.5)
    near = g.let(g.one(f"{width} * torch.log(1 + {d} / {curvature})", f"torch.log1p({d} / {curvature}) * {width}"))
    offset = f"({width} - {width} * math.log(1 + {width} / {curvature}))" + g.near("a step", "", " * 1.1")
    far = g.let(f"{d} - {offset}")
    g.after(g.let(g.one(f"torch.where({d} < {width}, {near}, {far})", f"torch.where({d} >= {width}, {far}, {near})")))


@piece("quality_focal_loss", "robust", "broadcast", "detached", "another power", dtypes=WIDE)
def quality_focal_written(g: Generator) -> None:
    shape = (2, 3) if g.miss == "broadcast" else g.one(*SHAPES)
    x, t = g.real(*shape, share=False), g.unit(*shape)
    if g.miss == "broadcast":
        t = g.let(f"{t}.mean(0, keepdim=True)")
        ce = g.let(f"F.binary_cross_entropy_with_logits({x}, {t}.expand(2, 3), reduction='none')")
    else:
        ce = g.let(f"F.binary_cross_entropy_with_logits({x}, {t}, reduction='none')")
    p = g.call("sigmoid", x)
    d = g.let(f"{p}.detach() - {t}" if g.miss == "detached" else g.one(f"{p} - {t}", f"{t} - {p}"))
    beta = g.one(2.0, 1.5, 1.0)
    factor = g.let(f"{d} ** 3" if g.miss == "another power" else f"{d}.abs() ** {beta}")
    g.after(g.times(factor, ce))


# labels that are ignored


@piece("cross_entropy", "classification", "two labels", "another share", "one mask", "smoothed twice")
def smoothing_with_ignored(g: Generator) -> None:
    """As fairseq, the smoothers of trainers, and the soft cross entropy of segmentation libraries are written."""
    if g.chance(0.5):
        shape, rows, axis = (4, 5), (4,), g.one(1, -1)
    else:
        shape, rows, axis = (2, 3, 5), (2, 3), -1
    x, t = g.before(g.real(*shape), shape), g.index(5, *rows)
    eps = g.one(0.1, 0.2)
    logp = g.let(f"F.log_softmax({x}, {axis})")
    form = g.one("as they are", "filled", "clamped")
    label = -100 if form == "clamped" else g.one(1, 3)
    if form == "clamped":
        t = g.let(f"{t}.masked_fill({t} == 2, -100)")
        g.floats.remove(t)
    column = g.let(f"{t}.unsqueeze(-1)")
    pad = g.let(f"{column}.eq({label})")
    other = g.near("two labels", pad, f"{column}.eq({2 if label == 1 else 1})")
    if form == "filled":
        column = g.let(f"{column}.masked_fill({pad}, 0)")
    elif form == "clamped":
        column = g.let(g.one(f"{column}.clamp(min=0)", f"torch.clamp({column}, min=0)"))
    nll, smooth = g.let(f"-{logp}.gather({axis}, {column})"), g.let(f"-{logp}.sum({axis}, keepdim=True)")
    if g.miss == "smoothed twice":
        smooth = g.let(f"{smooth} + {nll}")
    if g.chance(0.5) and not g.quiet:
        g.do(f"{nll}.masked_fill_({pad}, 0.0)")
        if g.miss != "one mask":
            g.do(f"{smooth}.masked_fill_({other}, 0.0)")
    else:
        nll = g.let(f"{nll}.masked_fill({pad}, 0.0)")
        smooth = g.near("one mask", g.let(f"{smooth}.masked_fill({other}, 0.0)"), smooth)
    share = g.one((1 - eps, eps / 5), (1 - eps - eps / 4, eps / 4))
    a, b = g.near("another share", share, (share[0], share[1] * 1.5))
    how = g.one(".squeeze(-1)", ".sum()", ".mean()")
    g.results.append(g.let(f"{a!r} * {nll}{how} + {b!r} * {smooth}{how}"))
    for y in (nll, smooth, column, pad, other, logp):
        if y in g.floats:
            g.floats.remove(y)


# the log-sum-exp beside cross entropy


@piece(
    "cross_entropy",
    "z-loss",
    "every row counts",
    "another tensor",
    "cubed",
    "another index",
    "a mean of all",
    "multiplied",
    dtypes=WIDE,
    rule="z_loss",
)
def z_loss_of_counted(g: Generator) -> None:
    """With rows that are ignored: the squares count in those that are not."""
    ignored = g.one(1, -100)
    x, t = g.before(g.real(5, 4), (5, 4)), g.index(4, 5)
    z = g.real(5, 4, share=False) if g.miss == "another tensor" else x
    lse = g.let(g.one(f"torch.logsumexp({z}, {g.one(1, -1)})", f"{z}.logsumexp(-1)"))
    power = g.near("cubed", 2, 3)
    square = g.let(
        f"{lse} ** {power}"
        if power == 3
        else g.one(f"{lse} ** 2", f"{lse}.pow(2)", f"{lse} * {lse}", f"{lse}.square()")
    )
    mask = g.let(g.one("({} != {})", "~({} == {})").format(t, g.near("another index", ignored, 2)))
    g.floats.remove(mask)
    number, index = g.one(1e-4, 0.1), f", ignore_index={ignored}"
    if g.miss == "every row counts":
        kept = square
    else:
        chosen = g.one(f"torch.where({mask}, {square}, 0.0)", f"{square}.masked_fill(~{mask}, 0.0)")
        cast = g.one("", ".float()", f".to({square}.dtype)") if g.dtype == torch.float32 else ""
        kept = g.let(g.near("multiplied", chosen, f"{square} * {mask}{cast}"))
    if g.miss == "a mean of all" or g.chance(0.4):
        count = "5" if g.miss == "a mean of all" else f"{mask}.sum()"
        ce = g.let(f"F.cross_entropy({x}, {t}{index})")
        return g.results.append(g.plus(ce, g.times(number, g.let(f"{kept}.sum() / {count}"))))
    if g.chance(0.4):
        ce = g.let(f"F.cross_entropy({x}, {t}{index}, reduction='sum')")
        return g.results.append(g.plus(ce, g.times(number, g.let(f"{kept}.sum()"))))
    ce = g.let(f"F.cross_entropy({x}, {t}{index}, reduction='none')")
    if g.miss == "multiplied" and g.chance(0.3):
        return g.after(g.let(f"{g.plus(ce, g.times(number, square))} * {mask}"))
    g.after(g.plus(ce, g.times(number, kept)))


@piece(
    "cross_entropy", "z-loss", "may be ignored", "of probabilities", "detached", "a difference",
    dtypes=WIDE, rule="z_loss",
)  # fmt: skip
def z_loss_of_all(g: Generator) -> None:
    """Where the graph shows that every row counts; or with log-probabilities picked, where none can be left out."""
    shape = g.one((5, 4), (2, 3, 4))
    x, t = g.before(g.real(*shape), shape), g.index(4, *shape[:-1])
    z = g.near("of probabilities", x, f"{x}.softmax(-1)")
    z = g.near("detached", z, f"{z}.detach()")
    square = g.square(g.let(f"torch.logsumexp({z}, -1)"))
    number = g.one(1e-4, 0.1) if g.miss != "a difference" else -0.1
    if g.miss != "may be ignored" and g.chance(0.5):
        picked = g.let(f"F.log_softmax({x}, -1).gather(-1, {t}.unsqueeze(-1)).squeeze(-1)")
        return g.after(g.minus(g.times(number, square), picked))
    if len(shape) == 3:
        x, z, t = (g.let(f"{v}.{g.one('reshape', 'view')}({s})") for v, s in ((x, "-1, 4"), (z, "-1, 4"), (t, "-1")))
        g.floats.remove(t)
        square = g.square(g.let(f"torch.logsumexp({z}, -1)"))
    if g.miss != "may be ignored":
        t = g.let(f"{t}.clamp(min=0)")
        g.floats.remove(t)
    if g.chance(0.5):
        ce = g.let(f"F.cross_entropy({x}, {t})")
        return g.results.append(g.plus(ce, g.times(number, g.let(f"{square}.mean()"))))
    g.after(g.plus(g.let(f"F.cross_entropy({x}, {t}, reduction='none')"), g.times(number, square)))


# distributions


@piece(
    "jsd_loss", "divergences", "arguments exchanged", "teacher learns", "two temperatures", "another mixture",
    "shifted", dtypes=WIDE,
)  # fmt: skip
def jensen_shannon(g: Generator) -> None:
    shape = g.one((4, 5), (2, 3, 5))
    x = g.before(g.real(*shape, share=False), shape)
    y = g.real(*shape, grad=g.near("teacher learns", 0.0, 1.0), share=False)
    t, beta = g.one(1, 2.0, 4), 0.5
    other = g.near("two temperatures", t, 5)
    scaled = lambda v, by: v if by == 1 else g.let(g.one(f"{v} / {by}", f"{v} * {1 / by}"))  # noqa: E731
    x, y = scaled(x, t), scaled(y, other)
    logs = g.chance(0.5) and g.miss not in ("arguments exchanged", "shifted")
    if logs:
        beta = g.one(0.5, 0.1)
        q, p = (g.let(g.one(f"F.log_softmax({v}, -1)", f"{v}.log_softmax(-1)")) for v in (x, y))
        a, b = g.near("another mixture", (beta, 1 - beta), (0.3, 0.6))
        m = g.let(
            g.one(
                f"torch.logsumexp(torch.stack([{q} + math.log({b}), {p} + math.log({a})]), dim=0)",
                f"torch.logaddexp({q} + math.log({b}), {p} + math.log({a}))",
                f"torch.log({b} * {q}.exp() + {a} * {p}.exp())",
            )
        )
        of = ", log_target=True"
    else:
        q, p = (
            g.let(g.one(f"F.softmax({v}, -1)", f"{v}.softmax(-1)", f"F.log_softmax({v}, -1).exp()")) for v in (x, y)
        )
        half = g.near("another mixture", 0.5, 0.4)
        m = g.let(g.one(f"{half} * ({p} + {q})", f"({p} + {q}) * {half}", f"({q} + {p}) / {1 / half}"))
        m = g.near("shifted", m, f"({m} + 1e-3)")
        m, of = g.let(g.one(f"{m}.log()", f"torch.log({m})")), ""
    reduction = g.one("sum", "batchmean", "none", "mean")
    if g.miss == "arguments exchanged":
        m = g.let(f"{m}.exp()")
        first, second = (f"F.kl_div({v}.log(), {m}, reduction='{reduction}')" for v in (p, q))
    else:
        first, second = (f"F.kl_div({m}, {v}, reduction='{reduction}'{of})" for v in (p, q))
    first, second = g.let(first), g.let(second)
    y = g.plus(g.times(beta, first), g.times(1 - beta, second))
    if reduction == "none":
        y = g.let(f"{y}.sum(-1)")
    g.after(y)


# places between bins


@piece(
    "distribution_focal_loss", "bins", "not clamped", "weights of their own", "one bin further", "another place",
    "smoothed", dtypes=WIDE,
)  # fmt: skip
def between_bins(g: Generator) -> None:
    boxes = g.chance(0.5)
    x = g.before(g.real(6, 5), (6, 5))
    places = (3, 2) if boxes else (6,)
    y = g.real(*places, grad=0.3, share=False)
    # not a bin, where the slope changes
    y = g.let(f"torch.sin({y}) * 1.9 + 2" if g.miss == "not clamped" else f"({y} * 2 + 2.137).clamp(0, 3.99)")
    flat = ".view(-1)" if boxes else ""
    left = g.let(g.one(f"{y}.long()", f"{y}.to(torch.int64)"))
    right = g.let(f"{left} + {g.near('one bin further', 1, 0)}")
    g.floats.remove(left)
    g.floats.remove(right)
    cast = g.one("", f".to({y}.dtype)")
    of_left = g.let(f"{left}{cast} + 1 - {y}" if g.miss == "one bin further" else f"{right}{cast} - {y}")
    of_right = g.let(g.one(f"{y} - {left}{cast}", f"1 - {of_left}"))
    if g.miss == "weights of their own":
        of_left, of_right = g.unit(*places), g.unit(*places)
    if g.miss == "another place":
        of_right = g.let(f"{of_right} * 0.9")
    smooth = g.near("smoothed", "", ", label_smoothing=0.1")
    back = f".view({left}.shape)" if boxes else ""
    parts = [
        g.times(g.let(f"F.cross_entropy({x}, {at}{flat}, reduction='none'{smooth}){back}"), by)
        for at, by in ((left, of_left), (right, of_right))
    ]
    g.after(g.plus(*parts))


# a matrix of comparisons


def sides(g: Generator) -> tuple[str, str]:
    return g.before(g.real(4, 6, share=False), (4, 6)), g.before(g.real(4, 6, share=False), (4, 6))


def compared(g: Generator, a: str, b: str, scale: str) -> str:
    turned = g.one(f"{b}.t()", f"{b}.T", f"{b}.mT", f"{b}.transpose(0, 1)", f"{b}.permute(1, 0)")
    return g.let(
        g.one(f"{scale} * {a} @ {turned}", f"{scale} * ({a} @ {turned})", f"torch.matmul({a}, {turned}) * {scale}",
              f"torch.mm({a}, {turned}) * {scale}")
    )  # fmt: skip


def number_of(g: Generator) -> str:
    name = g.input("number", lambda: torch.rand((), generator=g.data) + 0.5, 0.8, share=False)
    return g.let(g.one(f"{name}.exp()", f"{name}.exp().clamp(max=100)")) if g.chance(0.5) else name


@piece(
    "clip_loss", "pairs", "one way", "matrix used", "two scales", "other texts", "shifted labels", "smoothed",
    "two weights", dtypes=WIDE,
)  # fmt: skip
def clip_written(g: Generator) -> None:
    a, b = sides(g)
    scale = number_of(g) if g.miss == "two scales" or g.chance(0.7) else str(g.one(10.0, 0.5))
    scores = compared(g, a, b, scale)
    if g.miss == "two scales":
        other = g.let(f"{scores}.t() * 1.5")
    elif g.miss == "other texts":
        other = compared(g, g.real(4, 6, share=False), a, scale)
    else:
        other = compared(g, b, a, scale) if g.chance(0.4) else g.let(g.one(f"{scores}.t()", f"{scores}.T"))
    labels = g.let(
        g.one(f"torch.arange({scores}.shape[0])", "torch.arange(4, dtype=torch.long)", f"torch.arange(len({a}))")
    )
    g.floats.remove(labels)
    g.not_for |= {"symbolic"}
    if g.miss == "shifted labels":
        labels = f"({labels} + 1) % 4"
    smooth, less = g.near("smoothed", "", ", label_smoothing=0.1"), g.near("two weights", 0.5, 0.4)
    first, second = (g.let(f"F.cross_entropy({z}, {labels}{smooth})") for z in (scores, other))
    if g.miss == "matrix used":
        g.results.append(g.let(f"{scores}.argmax(1).double()"))
    if g.miss == "one way":
        return g.after(first)
    if g.miss == "two weights":
        return g.after(g.plus(g.times(0.5, first), g.times(less, second)))
    g.results.append(g.over(g.plus(first, second), 2) if g.chance(0.5) else g.times(0.5, g.plus(first, second)))


@piece(
    "siglip_loss", "pairs", "matrix used", "all positive", "another bias", "labels from outside", "another function",
    dtypes=WIDE,
)  # fmt: skip
def siglip_written(g: Generator) -> None:
    a, b = sides(g)
    scale, bias = number_of(g), g.input("number", lambda: torch.randn((), generator=g.data), 0.8, share=False)
    scores = g.plus(compared(g, a, b, scale), g.near("another bias", bias, g.real(4, share=False)))
    g.not_for |= {"symbolic"}
    if g.miss == "labels from outside":
        signs = g.signs(4, 4)
    else:
        eye = g.let(g.one(f"torch.eye({scores}.size(0))", "torch.eye(4, 4)")
                    if g.dtype == torch.float32 else "torch.eye(4, dtype=torch.float64)")  # fmt: skip
        ones = g.one("torch.ones((4, 4))", f"torch.ones_like({scores})")
        ones = f"torch.ones_like({scores})" if g.dtype != torch.float32 else ones
        signs = g.let(f"-{ones} + {g.near('all positive', 2, 1)} * {eye}")
    loss = "F.logsigmoid" if g.miss != "another function" else "F.sigmoid"
    each = g.let(f"{loss}({g.times(signs, scores)})")
    if g.miss == "matrix used":
        g.results.append(g.let(f"{scores}.argmax(1).double()"))
    g.results.append(
        g.let(
            g.one(
                f"-{each}.sum() / {scores}.shape[0]", f"-({each}.sum(-1)).mean()", f"-torch.sum({each}, dim=-1).mean()"
            )
        )
    )
