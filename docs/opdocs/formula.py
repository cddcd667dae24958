"""The formula of a docstring, plain text with mathematical signs, as words and LaTeX.

A docstring says ``d²/(2·beta) where d = |x − t| < beta, else d − beta/2``. What is mathematics there is typeset, and
the words between stay words, so that the line breaks where a line of text would.
"""

import itertools
import re
from collections.abc import Collection
from dataclasses import dataclass
from unicodedata import decomposition, name

FUNCTIONS = {"log", "exp", "sin", "cos", "tan", "sinh", "cosh", "tanh", "max", "min"}
UPRIGHT = {"softmax", "sigmoid", "onehot", "erf", "gelu", "atan2", "clamp", "bce", "sort", "sign", "logsumexp"}
# words, however a formula places them
WORDS = {
    "with",
    "where",
    "else",
    "and",
    "of",
    "over",
    "for",
    "the",
    "or",
    "as",
    "in",
    "is",
    "at",
    "to",
    "by",
    "if",
    "all",
}
LETTERS = "αβγδεζηθικλμνξπρστφχψωΓΔΘΛΞΠΣΦΨΩ"
OTHERWISE = {"ε": "varepsilon", "φ": "varphi", "λ": "lambda", "Λ": "Lambda", "Π": "prod", "Σ": "sum"}
GREEK = {c: name(c).split()[-1] for c in LETTERS}
GREEK = {c: word.lower() if c.islower() else word.capitalize() for c, word in GREEK.items()} | OTHERWISE
# names of options that are a Greek letter spelled out
SPELLED = {"alpha", "beta", "gamma", "delta", "theta", "lambda", "mu", "sigma", "tau", "rho"}
SIGNS = {
    "·": r"\cdot ",
    "×": r"\times ",
    "−": "-",
    "≠": r"\neq ",
    "≤": r"\leq ",
    "≥": r"\geq ",
    "<=": r"\leq ",
    ">=": r"\geq ",
    "<": r"\lt ",
    ">": r"\gt ",
    "←": r"\leftarrow ",
    "→": r"\to ",
    "∞": r"\infty ",
    "∈": r"\in ",
    "∅": r"\emptyset ",
    "∉": r"\notin ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∂": r"\partial ",
    "∇": r"\nabla ",
    "±": r"\pm ",
    "≈": r"\approx ",
    "‖": r"\Vert ",
    "|": r"\vert ",
    "⟨": r"\langle ",
    "⟩": r"\rangle ",
    "⌊": r"\lfloor ",
    "⌋": r"\rfloor ",
    "…": r"\ldots ",
    "'": r"\prime ",
    "′": r"^{\prime}",
    "&": r"\& ",
    "%": r"\% ",
    "#": r"\# ",
    "@": r"\mathbin{@}",
}
# marks over the letter before them
OVER = {"\u0302": "hat", "\u0303": "tilde", "\u0304": "bar"}
OPENING = {"(": ")", "[": "]", "{": "}"}

TOKEN = re.compile(
    r"(?P<code>``.+?``)"
    r"|(?P<quoted>\"[^\"]*\")"
    r"|(?P<number>\d+(?:\.\d+)?(?:e-?\d+)?(?![A-Za-z]))"
    r"|(?P<word>[A-Za-z][A-Za-z0-9]*(?:[-'][A-Za-z]+)*)"
    r"|(?P<space>\s+)"
    r"|(?P<sign><=|>=|.)",
    re.DOTALL,
)
# A name is one of the formula's where one of these touches it, or one of the second stands between it and something
# else with a space on both sides.
TOUCHING = "·×−+/|‖√^_²³⁻("
BETWEEN = "·×−+/=<>≤≥≠←"


@dataclass(frozen=True)
class Token:
    kind: str
    text: str


@dataclass(frozen=True)
class Piece:
    """``kind``: text, code or math, which is LaTeX then."""

    kind: str
    text: str


def tokens(text: str) -> list[Token]:
    return [Token(str(m.lastgroup), m.group()) for m in TOKEN.finditer(" ".join(text.split()))]


def _names(found: list[Token], arguments: Collection[str]) -> set[str]:
    """The words that the formula uses as names: functions, arguments that are no word, what an operator joins."""
    names = FUNCTIONS | UPRIGHT | {a for a in arguments if "_" in a}
    texts = ["", "", *(token.text for token in found), "", ""]
    for i, token in enumerate(found, 2):
        if token.kind == "word" and token.text not in WORDS:
            touching = {texts[i - 1][-1:] if texts[i - 1] not in OPENING else "", texts[i + 1][:1]}
            before = texts[i - 1] == " " and texts[i - 2][:1] in BETWEEN and texts[i - 3 : i - 2] == [" "]
            after = texts[i + 1] == " " and texts[i + 2][:1] in BETWEEN and texts[i + 3 : i + 4] == [" "]
            if any(sign and sign in TOUCHING for sign in touching) or any(
                (before and texts[i - 2], after and texts[i + 2])
            ):
                names.add(token.text)
    return names


def script(sign: str, kind: str) -> str:
    """The letter that a sign is as an exponent (``super``) or an index (``sub``); nothing where it is none."""
    form = decomposition(sign) if len(sign) == 1 else ""
    return chr(int(form.split()[1], 16)).replace("−", "-") if form.startswith(f"<{kind}>") else ""


def _fraction(sign: str) -> str:
    """½ and its like as LaTeX; nothing where it is none."""
    form = decomposition(sign) if len(sign) == 1 else ""
    if not form.startswith("<fraction>"):
        return ""
    top, bottom = "".join(chr(int(code, 16)) for code in form.split()[1:]).split("\u2044")
    return rf"\frac{{{top}}}{{{bottom}}}"


def _joined(found: list[Token], arguments: Collection[str]) -> list[Token]:
    """Tokens with identifiers that have underscores, ``kernel_size``, as one: those of the op, and of functions."""
    result: list[Token] = []
    i = 0
    while i < len(found):
        text, j = found[i].text, i
        while (
            found[i].kind == "word" and j + 2 < len(found) and found[j + 1].text == "_" and found[j + 2].kind == "word"
        ):
            text, j = f"{text}_{found[j + 2].text}", j + 2
        if j > i and (text in arguments or min(map(len, text.split("_"))) > 1):
            result.append(Token("word", text))
            i = j + 1
        else:
            result.append(found[i])
            i += 1
    return result


def name_latex(word: str) -> str:
    if word in FUNCTIONS | SPELLED:
        return rf"\{word} "
    if len(word) == 1:
        return word
    return rf"\mathrm{{{word}}}".replace("_", r"\_")


class _Writer:
    """LaTeX of tokens from ``place`` on."""

    def __init__(self, found: list[Token], names: set[str]) -> None:
        self.found, self.names, self.place = found, names, 0
        texts = [token.text for token in found]
        # a sum has a range, and what is numbered is a matrix
        self.matrix = any(a == "Σ" and script(b, "sub").isdigit() for a, b in itertools.pairwise(texts))

    def at(self, ahead: int = 0) -> Token:
        place = self.place + ahead
        return self.found[place] if place < len(self.found) else Token("end", "")

    def is_math(self) -> bool:
        """Does the token here belong to the mathematics, outside of every bracket?"""
        token = self.at()
        if token.kind == "number":
            return True
        if token.kind == "word":
            if len(token.text) > 1:
                return token.text in self.names
            article = self.at(1).kind == "space" and self.at(2).kind == "word" and len(self.at(2).text) > 1
            return not (token.text in "aA" and article and self.at(2).text not in self.names)
        if token.kind == "sign" and token.text in OPENING:
            return self._closes_as_math()
        possessive = token.text == "'" and self.place > 0 and len(self.at(-1).text) > 1
        return token.kind == "sign" and token.text not in ",;:.!?)]}" and not possessive

    def _closes_as_math(self) -> bool:
        """Are there no words in the bracket that opens here?"""
        depth = 0
        for ahead in range(len(self.found) - self.place):
            token = self.at(ahead)
            if token.text in OPENING:
                depth += 1
            elif token.text in OPENING.values():
                depth -= 1
                if depth == 0:
                    return True
            elif token.kind == "word" and len(token.text) > 1 and token.text not in self.names:
                return False
        return False

    def factor(self) -> str:
        """One name, number, sign or bracket with its exponents and indices."""
        token = self.at()
        self.place += 1
        if token.text == "√":
            inner = self.bracket(bare=True) if self.at().text == "(" else self.factor()
            latex = rf"\sqrt{{{inner}}}"
        elif token.text in OPENING:
            self.place -= 1
            latex = self.bracket()
        elif token.kind == "word":
            latex = name_latex(token.text)
            if token.text in FUNCTIONS and self.at().kind == "space":
                return rf"{latex}{self.scripts()}\,"
            if token.text in self.names and self.at().text == "(":
                latex += self.scripts() + self.bracket()
        elif token.kind == "number":
            latex = token.text
            if exponent := re.fullmatch(r"(\d+(?:\.\d+)?)e(-?\d+)", token.text):
                power = f"10^{{{int(exponent[2])}}}"
                latex = power if exponent[1] == "1" else rf"{exponent[1]}\cdot {power}"
        elif token.kind in ("quoted", "code"):
            latex = rf"\text{{{token.text.strip('`')}}}".replace("_", r"\_")
        else:
            latex = _fraction(token.text) or self.sign(token.text)
        while over := OVER.get(self.at().text):
            latex, self.place = rf"\{over}{{{latex}}}", self.place + 1
        return latex + self.scripts()

    def sign(self, text: str) -> str:
        if text == "Σ" and self.matrix:
            return r"\Sigma "
        return rf"\{GREEK[text]} " if text in GREEK else SIGNS.get(text, text)

    def scripts(self) -> str:
        """Exponents and indices that stand here."""
        upper, lower = "", ""
        while True:
            text = self.at().text
            if letter := script(text, "super"):
                upper += letter
                self.place += 1
            elif letter := script(text, "sub"):
                lower += letter
                self.place += 1
            elif text in ("^", "_") and self.at(1).kind not in ("space", "end"):
                self.place += 1
                bare = self.at().text in ("(", "{")
                inner = self.bracket(bare=True) if bare else self.exponent() if text == "^" else self.index()
                upper, lower = (upper + inner, lower) if text == "^" else (upper, lower + inner)
            else:
                break
        return (f"_{{{lower}}}" if lower else "") + (f"^{{{upper}}}" if upper else "")

    def index(self) -> str:
        token = self.at()
        self.place += 1
        if token.kind == "word":
            return token.text if len(token.text) <= 2 else rf"\mathrm{{{token.text}}}"
        return self.sign(token.text)

    def exponent(self) -> str:
        """A name or number; a sign before it, and an index of its own, belong to it."""
        sign = ""
        if self.at().text in "−-":
            sign, self.place = "-", self.place + 1
        token = self.at()
        self.place += 1
        latex = self.sign(token.text) if token.kind == "sign" else name_latex(token.text)
        lower = ""
        while letter := script(self.at().text, "sub"):
            lower += letter
            self.place += 1
        return sign + latex + (f"_{{{lower}}}" if lower else "")

    def bracket(self, *, bare: bool = False) -> str:
        """A bracket with all that is in it, words too; ``bare``: without its signs."""
        opening = self.at().text
        self.place += 1
        items: list[str] = []
        while self.at().kind != "end" and self.at().text not in OPENING.values():
            self.item(items)
        closing = self.at().text
        self.place += 1
        inner = fractions(items)
        if bare:
            return inner
        opening, closing = (rf"\{s}" if s in "{}" else s for s in (opening, closing or OPENING[opening]))
        return rf"\left{opening} {inner}\right{closing} "

    def item(self, items: list[str]) -> None:
        token = self.at()
        if token.kind == "space":
            self.place += 1
            items.append(" ")
        elif token.kind == "word" and len(token.text) > 1 and token.text not in self.names:
            self.place += 1
            items.append(rf"\text{{ {token.text} }}")
        else:
            items.append(self.factor())


# what is no factor of its own: a sum goes on, a bar has another one
OPEN = (r"\sum", r"\prod", r"\vert", r"\Vert", r"\langle")


def fractions(items: list[str]) -> str:
    """The LaTeX of a term's parts, with a bar where all that stands before ``/`` is one factor."""
    result = [i for i in items if i != " "]
    place = 0
    while place < len(result):
        before = result[place - 2] if place > 1 else ""
        first = before in ("", "+", "-", "=", ",", r"\lt ", r"\leq ")
        whole = 0 < place < len(result) - 1 and not any(result[i].startswith(OPEN) for i in (place - 1, place + 1))
        if result[place] == "/" and first and whole:
            top, bottom = (unwrapped(result[i]) for i in (place - 1, place + 1))
            result[place - 1 : place + 2] = [rf"\frac{{{top}}}{{{bottom}}}"]
        else:
            place += 1
    return " ".join(result)


def unwrapped(latex: str) -> str:
    """Without the brackets around all of it."""
    if not (latex.startswith(r"\left( ") and latex.endswith(r"\right) ")):
        return latex
    depth = 0
    for m in re.finditer(r"\\left[(\[{|\\]|\\right[)\]}|\\]", latex):
        depth += 1 if m.group().startswith(r"\left") else -1
        if depth == 0:
            return latex[len(r"\left( ") : m.start()] if m.end() >= len(latex) - 1 else latex
    return latex


def pieces(text: str, arguments: Collection[str] = ()) -> list[Piece]:
    """The formula as words, code and LaTeX, in its order."""
    found = _joined(tokens(text), arguments)
    writer = _Writer(found, _names(found, arguments))
    result: list[Piece] = []
    items: list[str] = []

    def close() -> None:
        trailing = bool(items) and items[-1] == " "
        if latex := fractions(items).strip():
            result.append(Piece("math", latex))
        if trailing:
            result.append(Piece("text", " "))
        items.clear()

    while writer.at().kind != "end":
        token = writer.at()
        if token.kind in ("code", "quoted"):
            close()
            result.append(Piece("code", token.text.strip("`")))
            writer.place += 1
        elif token.kind == "space" and items:
            items.append(" ")
            writer.place += 1
        elif token.kind != "space" and writer.is_math():
            items.append(writer.factor())
        else:
            close()
            result.append(Piece("text", token.text))
            writer.place += 1
    close()
    return result
