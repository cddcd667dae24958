"""The documentation site: every op's text and curves; the real build, and a look at it with a browser, are slow."""

import contextlib
import functools
import http.server
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import opreg
from opdocs import curves, facts, formula, machine_code, mistakes, page
from opreg.registry import of_namespace
from opreg.testing import Maker

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
HEADINGS = ("Formula", "Call", "Arguments", "Returns", "Errors", "What the rewrite finds", "Speed", "Definition")


@pytest.fixture(autouse=True)
def _few_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "POINTS", 25)


def test_an_ops_page_says_all_of_it(op: opreg.Op) -> None:
    text = page.page(op, page.drawing_of(op))
    assert [h for h in HEADINGS if not re.search(rf"^##+ {h}$", text, re.MULTILINE)] == []
    assert all(f"`{name}`" in text for name in op.arguments)
    assert f"opreg.functional.{op.short}(" in text
    assert f"torch.ops.lossreg.{op.short}(" in text
    assert "{math}`" in text.split("## Formula")[1].split("\n## ")[0]
    assert not any(line.startswith("|") and not line.endswith("|") for line in text.split("\n")), (
        "a table's row in two lines"
    )


def test_curves_are_the_ops(op: opreg.Op) -> None:
    """Values and slopes of the curves agree with each other, but for kinks, and ops with a factor that is constant."""
    drawing = page.drawing_of(op)
    if drawing is None:
        assert op.mutated or not op.is_loss
        return
    for curve in drawing.curves:
        assert curve.x.shape == curve.value.shape == curve.grad.shape
        assert not curve.flat
        if not any(sample.smooth for sample in op.samples(Maker())):
            continue
        inside = slice(1, -1)
        slope = (curve.value[2:] - curve.value[:-2]) / (curve.x[2:] - curve.x[:-2])
        low = torch.minimum(torch.minimum(curve.grad[:-2], curve.grad[2:]), curve.grad[inside])
        high = torch.maximum(torch.maximum(curve.grad[:-2], curve.grad[2:]), curve.grad[inside])
        between = (slope >= low - 0.05 * (1 + low.abs())) & (slope <= high + 0.05 * (1 + high.abs()))
        known = torch.isfinite(slope) & torch.isfinite(low) & torch.isfinite(high)
        assert between[known].double().mean() > 0.7, curve.options


def test_every_op_is_in_the_gallery_and_the_guides() -> None:
    ops = facts.all_ops()
    assert {op.short for op in ops} == {op.short for op in of_namespace()}
    gallery, tasks, targets = page.gallery([(op, None) for op in ops]), page.tasks_text(ops), page.targets_text(ops)
    for op in ops:
        link = f"/generated/ops/{op.short}.md)"
        assert link in gallery
        assert link in tasks
        assert (link in targets) == op.is_loss
    for task in ("regression", "classification", "imbalance", "detection", "segmentation", "faces", "distillation"):
        assert f"## {task.capitalize()}" in tasks


def test_tasks_are_those_that_the_documentation_names() -> None:
    assert facts.tasks(opreg.get("huber_loss")) == ["regression"]
    assert facts.tasks(opreg.get("giou_loss")) == ["detection"]
    assert set(facts.tasks(opreg.get("arcface_loss"))) == {"metric learning", "faces"}
    assert facts.tasks(opreg.get("relu_squared")) == ["activation", "language models"]
    assert facts.tasks(opreg.get("asymmetric_loss")) == ["classification", "imbalance"]


@pytest.mark.parametrize(
    ("text", "arguments", "expected"),
    [
        ("x·σ(beta·x)", ["beta"], "⟦x \\cdot  \\sigma  \\left( \\beta  \\cdot  x\\right)⟧"),
        ("(x − t)²/v", [], "⟦\\frac{\\left( x - t\\right) ^{2}}{v}⟧"),
        (
            "½·|a|/Σ x̂ᵢ, p of Σ_c",
            [],
            "⟦\\frac{1}{2} \\cdot  \\vert  a \\vert  / \\sum  \\hat{x}_{i}⟧, ⟦p⟧ of ⟦\\sum _{c}⟧",
        ),
        ("Σ₁ + Σ₂, the boxes' Σ", [], "⟦\\Sigma _{1} + \\Sigma _{2}⟧, the boxes' ⟦\\Sigma⟧"),
        ("2·x/3", [], "⟦2 \\cdot  x / 3⟧"),
        ("d²/2 where d < delta, else the rest", ["delta"], "⟦\\frac{d^{2}}{2}⟧ where ⟦d \\lt  \\delta⟧, else the rest"),
        ("a class that is listed, q_c of a", [], "a class that is listed, ⟦q_{c}⟧ of ⟦a⟧"),
        ("Σ_{c≠y} e^(−x_c)", [], "⟦\\sum _{c \\neq  y} e^{- x_{c}}⟧"),
        ("√(x² + eps²), 1e-7", ["eps"], "⟦\\sqrt{x^{2} + \\mathrm{eps}^{2}}⟧, ⟦10^{-7}⟧"),
        (
            "s = label_smoothing; with ``log_target`` t",
            ["label_smoothing"],
            "⟦s = \\mathrm{label\\_smoothing}⟧; with log_target ⟦t⟧",
        ),
    ],
)
def test_formulas_become_words_and_mathematics(text: str, arguments: list[str], expected: str) -> None:
    found = formula.pieces(text, arguments)
    assert "".join(f"⟦{p.text}⟧" if p.kind == "math" else p.text for p in found) == expected


def test_every_formula_can_be_typeset() -> None:
    convert = pytest.importorskip("latex2mathml.converter", reason="latex2mathml makes the site's formulas").convert
    for op in facts.all_ops():
        for piece in formula.pieces(facts.titled(op)["Formula"], op.arguments):
            if piece.kind == "math":
                assert piece.text.count("{") - piece.text.count("\\{") == piece.text.count("}") - piece.text.count(
                    "\\}"
                )
                assert convert(piece.text).startswith("<math")


def test_wrong_targets_are_told_as_they_are() -> None:
    def found(name: str) -> dict[str, mistakes.Mistake]:
        op = opreg.get(name)
        return {m.given: m for target in mistakes.target_names(op) for m in mistakes.mistakes(op, target)}

    focal = found("focal_loss")["class indices, one a row"]
    assert focal.error
    assert "pass torch.nn.functional.one_hot(target, 5)" in focal.happens
    assert found("cross_entropy")["one-hot rows of floats"].happens == "no error, the same loss"
    assert found("soft_margin_loss")["0 and 1"].happens.startswith("no error, another loss")
    assert mistakes.form(opreg.get("giou_loss"), "target") == mistakes.BOX
    assert mistakes.form(opreg.get("lovasz_hinge_loss"), "target") == "0 or 1"
    assert mistakes.form(opreg.get("multilabel_margin_loss"), "target") == mistakes.LISTED


def test_rules_are_shown_with_the_op_that_they_make() -> None:
    rules = facts.found_by_rewrite(opreg.get("dice_loss"))
    assert rules.rules
    assert all(name.startswith("dice_loss") for name in rules.rules)
    assert rules.near
    assert all(name.startswith("dice_loss") for name in rules.near)
    rule = facts.found_by_rewrite(opreg.get("huber_loss")).rules["huber_loss, written out"][0]
    names: dict[str, Any] = {"torch": torch}
    exec(facts.pattern_text(rule), names)  # what is shown is Python, and computes the loss
    x, t = torch.randn(20), torch.randn(20)
    expected = torch.nn.functional.huber_loss(x, t, reduction="none", delta=0.7)
    torch.testing.assert_close(names["pattern"](x, t, delta=0.7), expected)


def test_pictures_are_files_that_say_what_was_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib draws the site's pictures")
    from opdocs import pictures

    drawing = curves.draw(opreg.get("focal_loss"))
    words = [text for text, _, _ in pictures.legend(drawing)]
    assert words[:2] == ["target = 0", "target = 1"]
    assert len(set(words)) == len(words) > 2
    for which in ("value", "grad"):
        pictures.picture(drawing, which, tmp_path / "a.svg")
        first = (tmp_path / "a.svg").read_bytes()
        pictures.picture(drawing, which, tmp_path / "a.svg")
        assert first == (tmp_path / "a.svg").read_bytes()  # the same curves are the same file
    pictures.thumbnail(drawing, tmp_path / "small.svg")
    assert "<svg" in (tmp_path / "small.svg").read_text()


def test_the_innermost_wide_loop_is_found() -> None:
    text = "10:\tvmovups %zmm1\n 14:\tadd $1\n 18:\tvmulps %zmm1\n 1c:\tjne 18 <f+8>\n 20:\tjne 10 <f>\n 28:\tret\n"
    assert machine_code.hot_loop(text) == ["vmulps %zmm1", "jne 18 <f+8>"]
    assert machine_code.hot_loop("10:\tadd $1\n 14:\tjne 10 <f>\n") == []


def directives() -> Iterator[tuple[Path, str, dict[str, str]]]:
    """Every file that a page includes, with the options that say from where to where."""
    for source in sorted(DOCS.rglob("*.md")):
        if "generated" in source.parts:
            continue
        for m in re.finditer(r"```{(?:literal)?include} (\S+)\n((?::.+\n)*)", source.read_text()):
            yield source, m[1], dict(re.findall(r"^:([\w-]+): \"?(.*?)\"?$", m[2], re.MULTILINE))


def test_what_guides_include_is_there() -> None:
    found = list(directives())
    assert len(found) > 10
    for source, name, options in found:
        if "generated/" in name:
            continue
        text = (source.parent / name).read_text()
        for option in ("start-after", "start-at", "end-before"):
            if option in options:
                place = text.find(options[option])
                assert place >= 0, f"{source.name}: {name} has no {options[option]!r}"
                text = text[place:] if option.startswith("start") else text


def module(name: str, needed: str) -> Any:
    """One that can't be imported where something is not installed."""
    pytest.importorskip(needed, reason=f"{needed} is not installed")
    return importlib.import_module(name)


def test_the_guide_of_training_says_what_was_measured() -> None:
    """The claims of its text, of the committed curves."""
    training = module("opdocs.training", "matplotlib")
    found = training.measured()

    def curve(name: str, label: str, key: str = "mean") -> list[float]:
        values: list[float] = found[name]["curves"][label][key]
        return values

    def best(name: str, label: str) -> float:
        rates, scores = curve(name, label, "x"), curve(name, label)
        return rates[scores.index(max(scores))]

    began = {label: curve("prior-focal", label)[0] for label in found["prior-focal"]["curves"]}
    assert began["prior 0.1"] < 0.5 * began["bias 0"]
    assert began["prior 0.01"] > 0.8 * began["bias 0"]
    reached = next(i for i, loss in enumerate(curve("prior-focal", "bias 0")) if loss <= began["prior 0.1"])
    assert 8 <= reached <= 16
    shares = curve("prior-cross_entropy", "the classes' shares")
    assert shares[0] < 0.9 * curve("prior-cross_entropy", "bias 0")[0]
    last = {label: curve("initialisers", label)[-1] for label in found["initialisers"]["curves"]}
    assert max(last["kaiming_normal_"], last["orthogonal_, gain √2"]) < 0.1 < 0.5 < last["torch.nn.Linear's own"]
    losses = list(found["rates-SGD"]["curves"])
    assert [best("rates-SGD", loss) for loss in losses] == [0.1, 3.0, 3.0]
    assert curve("rates-SGD", "cross_entropy")[-2] == 0.1  # at a rate of 1, one class for all
    assert [best("rates-AdamW", loss) for loss in losses] == [0.01, 0.01, 0.01]
    for label in ("cosine", "warm-up, then cosine"):
        assert curve("schedules", label, "high")[-1] > curve("schedules", "constant", "low")[-1]
        assert curve("schedules-deep", label)[-1] > curve("schedules-deep", "constant")[-1] + 0.15
    middle = len(curve("average", "the weights")) // 2
    assert curve("average", "EMA, 0.99")[middle] > curve("average", "the weights")[middle]


def test_every_training_is_in_the_guide(tmp_path: Path) -> None:
    training, recipes = module("opdocs.training", "matplotlib"), module("recipes", "sklearn")
    guide = (DOCS / "guides" / "training.md").read_text()
    assert set(re.findall(r"generated/training-([\w-]+)\.md", guide)) == set(training.names())
    assert training.names() == [e.name for e in recipes.experiments()]
    for name in training.names():
        text = training.text(name)
        assert f"training-{name}.svg" in text
        assert all(label in text for label in training.measured()[name]["curves"])
    training.draw("average", tmp_path / "a.svg")
    assert "<svg" in (tmp_path / "a.svg").read_text()


def test_a_training_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """One epoch of one experiment, on a few images of noise, with curves of the form that is committed."""
    training, recipes = module("opdocs.training", "matplotlib"), module("recipes", "sklearn")
    torch.manual_seed(0)
    data = torch.rand(20, 64), torch.arange(20) % 10
    monkeypatch.setattr(recipes, "RATES", [0.01, 0.1])
    made = recipes.measure([(data, data), (data, data)], epochs=1, only="average")
    assert list(made) == ["average"]
    assert set(made["average"]["curves"]) == set(training.measured()["average"]["curves"])
    for curve in made["average"]["curves"].values():
        assert [len(curve[key]) for key in ("x", "mean", "low", "high")] == [1, 1, 1, 1]
        assert curve["low"][0] <= curve["mean"][0] <= curve["high"][0]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built anew without a warning."""
    missing = [
        m for m in ("sphinx", "myst_parser", "pydata_sphinx_theme", "latex2mathml") if not importlib.util.find_spec(m)
    ]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: make docs does that")
    built = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-E", "-b", "html", str(DOCS), str(built)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return built


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on PATH")
    with (
        sync_api.sync_playwright() as p,
        contextlib.closing(p.chromium.launch(executable_path=program, args=["--no-sandbox"])) as opened,
    ):
        yield opened


# Pages of each kind, of which OPREG_SCREENSHOTS, a folder, gets pictures; of the long ones what is seen first.
FIRST_SCREEN = ("generated/gallery.html", "guides/target_form.html", "guides/which_loss.html", "reference.html")
SHOWN = (*FIRST_SCREEN, "index.html", "generated/ops/focal_loss.html", "guides/training.html", "guides/deployment.html")


def pages(site: Path) -> list[str]:
    return sorted(str(p.relative_to(site)) for p in site.rglob("*.html") if "_static" not in p.parts)


@pytest.mark.slow
def test_every_op_has_a_page_in_the_site(site: Path) -> None:
    for op in of_namespace():
        text = (site / "generated" / "ops" / f"{op.short}.html").read_text()
        assert "<math" in text, op.short


@pytest.mark.slow
def test_links_lead_somewhere(site: Path) -> None:
    """Every link and picture within the site, and every anchor."""
    texts = {name: (site / name).read_text() for name in pages(site)}
    anchors = {name: set(re.findall(r'\bid="([^"]+)"', text)) for name, text in texts.items()}
    for name, text in texts.items():
        for link in re.findall(r'\b(?:href|src)="([^"]+)"', text):
            if re.match(r"\w+:|//", link):
                continue
            path, _, anchor = link.partition("#")
            target = (site / name).parent.joinpath(path.split("?")[0]).resolve() if path else site / name
            assert target.exists(), f"{name}: {link}"
            relative = str(target.relative_to(site.resolve())) if path else name
            if anchor and relative in anchors:
                assert anchor in anchors[relative], f"{name}: {link}"


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_pages_open_without_an_error_at_this_width(site: Path, address: str, browser: Any, width: int) -> None:
    opened = browser.new_page(viewport={"width": width, "height": 900})
    opened.set_default_timeout(120_000)  # of a machine that does other work too
    errors: list[str] = []
    opened.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    opened.on("pageerror", lambda e: errors.append(str(e)))
    # aborted: the browser had not asked for the icon yet when the next page was opened
    opened.on("requestfailed", lambda r: errors.append(r.url) if r.failure != "net::ERR_ABORTED" else None)
    opened.on("response", lambda r: errors.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    for name in pages(site):
        opened.goto(f"{address}/{name}")
        broken = opened.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)")
        wider = opened.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert (errors, broken, max(wider, 0)) == ([], [], 0), name
        if name in SHOWN and (folder := os.environ.get("OPREG_SCREENSHOTS")):  # for who looks at them
            stem = name.removesuffix(".html").replace("/", "-")
            opened.screenshot(path=Path(folder) / f"{stem}-{width}.png", full_page=name not in FIRST_SCREEN)


@pytest.mark.slow
def test_search_finds_an_op(address: str, browser: Any) -> None:
    opened = browser.new_page()
    opened.goto(f"{address}/search.html?q=lovasz")
    opened.wait_for_selector("#search-results li a")
    assert "lovasz_softmax_loss" in opened.inner_text("#search-results")


@pytest.mark.slow
def test_the_gallery_is_filtered_by_task(address: str, browser: Any) -> None:
    opened = browser.new_page()
    opened.goto(f"{address}/generated/gallery.html")
    assert opened.locator(".card-of-op:visible").count() == len(of_namespace())
    opened.get_by_role("button", name="detection").click()
    shown = opened.locator(".card-of-op:visible").all_inner_texts()
    assert 5 < len(shown) < len(of_namespace())
    assert any("giou_loss" in text for text in shown)
    assert not any("huber_loss" in text for text in shown)
    opened.goto("about:blank")
    opened.goto(f"{address}/generated/gallery.html#for-detection")  # a link leads to the same
    assert opened.locator(".card-of-op:visible").count() == len(shown)
