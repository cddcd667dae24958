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
