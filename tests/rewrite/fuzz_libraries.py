"""Losses in the ways of libraries, for fuzz_programs.py: each with near misses that no op computes."""

from fuzz_written import SHAPES, hard

from fuzz_programs import WIDE, Generator, piece

POWERS = (2, 1.5, 3)


def column(g: Generator) -> tuple[str, str, tuple[int, ...]]:
    """Scores, and class indices in a column; and the shape of the scores."""
    shape, labels = ((2, 3, 2), (2, 1, 2)) if g.chance(0.4) else ((4, 3), (4, 1))
    return g.before(g.real(*shape), shape), g.index(3, *labels), shape


@piece("cross_entropy", "columns", "another dimension", "two of a row", dtypes=WIDE)
def loss_in_a_column(g: Generator) -> None:
    x, t, _ = column(g)
    logp = g.let(f"F.log_softmax({x}, {g.near('another dimension', 1, 0)})")
    if g.miss == "two of a row":
        return g.after(g.let(f"-({logp}.gather(1, {t}) + {logp}.gather(1, ({t} + 1) % 3))"))
    if g.chance(0.5):
        return g.after(g.let(f"-{logp}.gather(1, {t})"))
    hot = g.let(f"torch.zeros_like({x}).scatter(1, {t}, 1.0)")
    g.results.append(g.let(g.one(f"-({hot} * {logp}).sum()", f"-({logp} * {hot}).sum(1)", f"-({hot} * {logp}).mean()")))


@piece("softmax_focal_loss", "columns", "another dimension", "a factor", "another power")
def focal_in_a_column(g: Generator) -> None:
    x, t, _ = column(g)
    logp = g.let(f"F.log_softmax({x}, {g.near('another dimension', 1, 0)})")
    picked, gamma = g.let(f"{logp}.gather(1, {t})"), g.one(*POWERS)
    p = g.near("a factor", f"{picked}.exp()", f"0.9 * {picked}.exp()")
    other = g.near("another power", picked, f"{picked} ** 3")
    g.after(g.let(f"-(1 - {p}) ** {gamma} * {other}"))


@piece("softmax_focal_loss", "columns", "another dimension", "another power", "guarded elsewhere")
def guarded_focal(g: Generator) -> None:
    images = g.chance(0.4)
    shape, rows = ((2, 3, 2), (2, 2)) if images else ((4, 3), (4,))
    x, t = g.before(g.real(*shape), shape), g.index(3, *rows)
    gamma = g.one(*POWERS)
    logp = g.let(f"F.log_softmax({x}, {g.near('another dimension', 1, 0)}).gather(1, {t}.unsqueeze(1))")
    rest = g.let(f"1 - {logp}.exp()")
    gone = g.let(f"{rest} {g.near('guarded elsewhere', '== 0', '> 0.5')}")
    first = g.let(f"{rest}.detach() ** {gamma}")
    second = g.let(f"{rest}.masked_fill({gone}, 1.0) ** {g.near('another power', gamma, gamma + 1)}")
    weight = g.let(f"torch.where({gone}, {first}, {second})")
    g.after(g.let(f"-{weight} * {logp}"))


@piece("poly1_cross_entropy", "columns", "two labels", "another dimension", "a square", dtypes=WIDE)
def poly1(g: Generator) -> None:
    x, t = g.before(g.real(4, 3), (4, 3)), g.index(3, 4)
    logp = g.let(f"F.log_softmax({x}, {g.near('another dimension', 1, 0)})")
    labels = g.near("two labels", t, f"({t} + 1) % 3")
    epsilon = g.one(2.0, -1.0, 0.5)
    if g.chance(0.5):
        hot, other = g.let(f"F.one_hot({t}, 3).to({g.dtype})"), g.let(f"F.one_hot({labels}, 3).to({g.dtype})")
        loss, p = g.let(f"-({hot} * {logp}).sum(-1)"), g.let(f"({other} * {logp}.exp()).sum(dim=-1)")
    else:
        loss = g.let(f"-{logp}.gather(1, {t}[:, None]).squeeze(1)")
        p = g.let(f"{logp}.gather(1, ({labels})[:, None]).squeeze(1).exp()")
    p = g.near("a square", p, f"{p} ** 2")
    g.after(g.let(g.one(f"{loss} + {epsilon} * (1 - {p})", f"{loss} + {epsilon} - {epsilon} * {p}")))


@piece("triplet_margin_loss", "margins", "another degree", "no margin", "squares", dtypes=WIDE)
def triplet_of_norms(g: Generator) -> None:
    a, p, n = (g.real(3, 5, share=False) for _ in range(3))
    first, second = (
        g.let(g.one(f"torch.linalg.vector_norm({x} - {y}, dim=-1)", f"torch.linalg.vector_norm({y} - {x}, 2, -1)",
                    f"({x} - {y}).norm(dim=1)", f"torch.norm({x} - {y}, p=2, dim=-1)"))
        for x, y in ((a, p), (a, n))
    )  # fmt: skip
    if g.miss == "another degree":
        first = g.let(f"torch.linalg.vector_norm({a} - {p}, 1, -1)")
    if g.miss == "squares":
        first, second = g.let(f"{first} ** 2"), g.let(f"{second} ** 2")
    margin = g.near("no margin", g.one(0.2, 1.0), 0)
    g.after(g.let(g.one(f"F.relu({first} - {second} + {margin})", f"({margin} + {first} - {second}).clamp(min=0)")))


@piece("asymmetric_loss", "focal of zeros and ones", "soft", "two", "not clamped", "two clips", "another floor")
def asymmetric(g: Generator) -> None:
    shape = g.one(*SHAPES)
    x = g.real(*shape)
    x = g.near("not clamped", g.let(f"{x}.clamp(-5, 5)"), x)
    t = hard(g, *shape)
    clip, eps = g.one(0.05, 0.2), g.one(1e-8, 1e-4)
    other = g.near("two clips", clip, clip / 2)
    gamma_neg, gamma_pos = g.one(4, 2), g.one(1, 2)
    floor = g.near("another floor", eps, 0.4)
    p = g.let(f"torch.sigmoid({x})")
    rest = g.let(f"(1 - {p} + {clip}).clamp(max=1)")
    of_weight = g.let(f"(1 - {p} + {other}).clamp(max=1)")
    power = g.let(f"{gamma_pos} * {t} + {gamma_neg} * (1 - {t})")
    weight = g.let(f"torch.pow(1 - ({p} * {t} + {of_weight} * (1 - {t})), {power})")
    if g.chance(0.5):
        log = g.let(f"torch.log(({rest} * (1 - {t}) + {p} * {t}).clamp(min={floor}))")
    else:
        log = g.let(f"{t} * torch.log({p}.clamp(min={floor})) + (1 - {t}) * torch.log({rest}.clamp(min={floor}))")
    g.after(g.let(g.one(f"-{log} * {weight}", f"-({log} * {weight})")))


@piece("dice_loss", "channels", "a smaller smooth", "a signed target", "probabilities", "two smooths")
def bounded_dice(g: Generator) -> None:
    shape = g.one((2, 3, 4), (2, 1, 3, 2))
    x = g.before(g.real(*shape), shape)
    t = g.let(f"({g.real(*shape, grad=0)} > 0.2).to({g.dtype})")
    if g.miss == "a signed target":
        t = g.real(*shape, grad=0)
    p = g.let(f"torch.sigmoid({x})") if g.miss != "probabilities" else g.unit(*shape)
    pixels = tuple(range(2, len(shape)))
    over = g.one(pixels, (0, *pixels))
    smooth, eps = g.one(1, 1e-3), g.near("a smaller smooth", g.one(1e-8, 1e-4), 10.0)
    tp, fp, fn = (
        g.let(f"({a} * {b}).sum({over})")
        for a, b in ((p, t), (p, f"(1 - {t})"), (f"(1 - {p})", t))
    )  # fmt: skip
    top = g.near("two smooths", smooth, 0.5)
    bottom = g.let(f"torch.clip(2 * {tp} + {fp} + {fn} + {smooth}, {eps})")
    g.after(g.let(g.one(f"-(2 * {tp} + {top}) / {bottom}", f"1 - (2 * {tp} + {top}) / {bottom}")))


@piece("jaccard_loss", "channels", "two smooths", "probabilities", "not doubled")
def doubled_jaccard(g: Generator) -> None:
    shape = g.one((2, 3, 4), (2, 1, 3, 2))
    x, t = g.before(g.real(*shape), shape), g.one(g.bits, g.unit)(*shape)
    p = g.let(f"torch.sigmoid({x})") if g.miss != "probabilities" else g.unit(*shape)
    over, smooth = tuple(range(2, len(shape))), g.one(1, 1e-3, 1e-5)
    tp = g.let(f"({p} * {t}).sum({over})")
    fp, fn = g.let(f"{p}.sum({over}) - {tp}"), g.let(f"{t}.sum({over}) - {tp}")
    times = g.near("not doubled", 2, 1)
    bottom = g.let(f"2 * ({tp} + {fp} + {fn}) + {g.near('two smooths', smooth, 0.5)}")
    g.after(g.let(f"1 - ({times} * {tp} + {smooth}) / {bottom}"))


@piece("dice_loss", "channels", "another degree", "one norm", "two smooths")
def dice_of_norms(g: Generator) -> None:
    shape = g.one((2, 3, 4), (2, 1, 3, 2))
    x, t = g.before(g.real(*shape), shape), g.one(g.bits, g.unit)(*shape)
    over, smooth = tuple(range(2, len(shape))), g.one(1, 1e-3, 1e-5)
    degree = g.near("another degree", 2, 3)
    p = g.let(f"torch.sigmoid({x})")
    norms = [g.let(f"torch.linalg.vector_norm({z}, ord={degree}, dim={over})") for z in (p, t, f"({p} - {t})")]
    if g.miss == "one norm":
        a, b, c = norms[0], *(g.let(f"torch.pow({n}, exponent={degree})") for n in norms[1:])
    else:
        a, b, c = (g.let(f"torch.pow({n}, exponent={degree})") for n in norms)
    tp = g.let(f"({a} + {b} - {c}) / 2")
    other = g.near("two smooths", smooth, 0.5)
    g.after(g.let(f"1 - (2 * {tp} + {smooth}) / (2 * ({tp} + ({a} - {tp}) * 0.5 + ({b} - {tp}) * 0.5) + {other})"))


@piece("cross_entropy", "scores", "another dimension", "two scores", dtypes=WIDE)
def of_probabilities_of_tokens(g: Generator) -> None:
    x = g.before(g.real(2, 3, 4), (2, 3, 4))
    t = g.let(f"F.softmax({g.real(2, 3, 4, grad=0)}, -1)")
    d = g.near("another dimension", -1, 0)
    first = g.let(f"F.log_softmax({x}, {d})")
    if g.miss == "two scores":
        first = g.let(f"{first} + F.log_softmax({x} * 1.5, -1)")
    g.after(g.let(g.one(f"-({t} * {first}).sum(-1)", f"-torch.sum({first} * {t}, dim=-1)")))


@piece("cross_entropy", "scores", "another order", "some rows", "another score", dtypes=WIDE)
def of_stacked_rows(g: Generator) -> None:
    x, t = g.before(g.real(3, 2, 4), (3, 2, 4)), g.index(4, 3, 2)
    order = g.near("another order", (0, 1, 2), (0, 2, 1))
    order = g.near("some rows", order, (0, 1, 1))
    rows = g.let("torch.stack([" + ", ".join(f"torch.logsumexp({x}[{i}], {g.one(-1, 1)})" for i in order) + "])")
    scores = g.near("another score", x, f"({x} * 1.5)")
    picked = g.let(f"{scores}.gather(-1, {t}.unsqueeze(-1)).squeeze(-1)")
    g.after(g.let(g.one(f"{rows} - {picked}", f"-({picked} - {rows})")))


@piece("cross_entropy", "scores", "another dimension", "mixed", "a sum", dtypes=WIDE, rule="log_softmax and nll_loss")
def nll_of_views(g: Generator) -> None:
    x, t = g.before(g.real(2, 3, 3), (2, 3, 3)), g.index(3, 2, 3)
    logp = g.let(f"F.log_softmax({x}, {g.near('another dimension', -1, 0)})")
    logp = g.near("a sum", logp, g.let(f"{logp} + 0.5"))
    options = g.one("", ", reduction='sum'", ", reduction='none'", ", ignore_index=1")
    if g.miss == "mixed":
        return g.after(g.let(f"F.nll_loss({logp}.reshape(3, 2, 3).reshape(2, 3, 3), {t}{options})"))
    flat = g.chance(0.5)
    views = ("view(-1, 3)", "reshape(6, 3)", "flatten(0, 1)") if flat else (
        "transpose(1, -1)", "permute(0, 2, 1)", "movedim(-1, 1)", "transpose(1, 2).contiguous()",
    )  # fmt: skip
    labels = f"{t}.reshape(-1)" if flat else t
    g.results.append(g.let(f"F.nll_loss({logp}.{g.one(*views)}, {labels}{options})"))


@piece("quality_focal_loss", "robust", "detached", "another power", dtypes=WIDE)
def quality_by_l1(g: Generator) -> None:
    shape = g.one(*SHAPES)
    x, t = g.real(*shape, share=False), g.unit(*shape)
    ce = g.let(f"F.binary_cross_entropy_with_logits({x}, {t}, reduction='none')")
    p = g.near("detached", g.let(f"torch.sigmoid({x})"), g.let(f"torch.sigmoid({x}).detach()"))
    factor = g.let(
        g.one(f"F.l1_loss({p}, {t}, reduction='none') ** 2", f"F.l1_loss({p}, {t}, reduction='none').pow(1.5)",
              f"F.mse_loss({p}, {t}, reduction='none')", f"F.l1_loss({t}, {p}, reduction='none').pow_(2)")
    )  # fmt: skip
    if g.miss == "another power":
        factor = g.let(f"{factor} - 0.25 * {p}")
    g.after(g.times(factor, ce))


@piece("quantile_loss", "robust", "another number", dtypes=WIDE)
def weighted_quantile(g: Generator) -> None:
    shape = g.one(*SHAPES)
    x, t, w = g.real(*shape, share=False), g.real(*shape, share=False), g.unit(*shape, grad=0)
    q = g.one(0.3, 0.9)
    d = g.let(f"{t} - {x}")
    losses = g.let(f"torch.{g.one('maximum', 'max')}({q} * {d}, {g.near('another number', q - 1, q - 2)} * {d})")
    mask = g.let(f"torch.where({w} > 0.4, {losses}, torch.zeros_like({losses}))")
    g.results.append(g.let(f"({mask} * {w}).sum() / {w}.sum()"))
