"""Makes docs/api.md from the source: python docs/make_api.py. A test holds the page to what this says."""

import ast
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "api.md"

INTRODUCTION = """\
# The API

Made from the code by `make docs`; a test holds it to the code. `from coupon_clock.app import …` has what the commands
and queries need. The rules that commands are held to are in [domain/rules.py](../domain/rules.py), what is stored is in
[events.md](events.md), and the words are in the [glossary](glossary.md).
"""

Sections = tuple[tuple[str, str, str, tuple[str, ...]], ...]
"""Heading, what to know, source file, and the classes and functions to show."""

SECTIONS: Sections = (
    (
        "The application",
        "One for each process; safe to use from several threads. Every error is a `CouponError`.",
        "app.py",
        ("Application", "Outcome"),
    ),
    (
        "Commands",
        "Ids are UUIDs, made by the caller before the first try. `expected_version` refuses a command when others came "
        "first; `actor` is kept and shown.",
        "domain/commands.py",
        ("CreateCouponTemplate", "IncreaseStock", "ChangeValidity", "TerminateCouponTemplate"),
    ),
    (
        "Discounts",
        "Money in integer minor units.",
        "domain/discount.py",
        ("FixedAmount", "ThresholdAmount", "Percentage"),
    ),
    ("Rules of receiving and using", "", "domain/events.py", ("ReceiveRule", "ConsumeRule")),
    ("Whole days", "", "domain/validity.py", ("Validity",)),
    (
        "Events",
        "What `history`, `follow` and an `Outcome` hand out.",
        "domain/events.py",
        ("Created", "StockIncreased", "ValidityChanged", "Ended", "EndReason"),
    ),
    ("", "", "infrastructure/event_store.py", ("Envelope",)),
    ("Queries", "", "projections/read_model.py", ("Filters", "Page", "TemplateView", "TemplateRow")),
    ("", "", "projections/shop_months.py", ("MonthsPage", "ShopMonth")),
    ("Proofs", "", "projections/check.py", ("Report", "Lateness", "Violation")),
    ("", "", "projections/stored_rows.py", ("Difference",)),
    ("", "", "projections/verify.py", ("Part",)),
    ("Rebuilding", "", "projections/rebuild.py", ("RebuildOptions", "Rebuilt")),
    (
        "Another deadline",
        "For streams that are no coupon templates: [deadlines.md](deadlines.md).",
        "clockwork.py",
        ("Clockwork",),
    ),
    ("", "", "infrastructure/execution.py", ("Decider", "Executed")),
    (
        "For tests",
        "",
        "testing.py",
        (
            "throw_away_database",
            "turned_application",
            "TurnedClock",
            "TurnedApplication",
            "given",
            "when",
            "then",
            "then_nothing",
            "then_refused",
            "run_due",
        ),
    ),
)

ERROR_FILES = ("domain", "infrastructure", "projections", "clockwork.py", "app.py")
LOCAL = ROOT / "infrastructure" / "local"
"""Servers for development, with errors of their own."""
ERRORS = "Each is one sentence that says what is wrong and what to do, with these fields as attributes."
SETTINGS = "From the environment, or as arguments of `Settings.load` in small letters. Times are in seconds."

FOREIGN = ("Struct", "NamedTuple", "StrEnum", "Generic")
WIDEST = 100

Definition = ast.ClassDef | ast.FunctionDef


def page() -> str:
    parts = [INTRODUCTION]
    for heading, text, file, names in SECTIONS:
        parts += [f"## {heading}\n"] if heading else []
        parts += [f"{text}\n"] if text else []
        parts += [shown(definition) for definition in definitions(file, names)]
    parts += [f"## Errors\n\n{ERRORS}\n", errors(), f"## Settings\n\n{SETTINGS}\n", settings()]
    return "\n".join(parts)


def definitions(file: str, names: tuple[str, ...]) -> list[Definition]:
    """In the order of the names. Raises KeyError for one that is not there."""
    module = ast.parse((ROOT / file).read_text())
    found = {node.name: node for node in module.body if isinstance(node, Definition)}
    return [found[name] for name in names]


def shown(node: Definition) -> str:
    if isinstance(node, ast.FunctionDef):
        return f"### `{node.name}`\n\n{function(node)}"
    fields = [f"{field}\n" for field in code_of_fields(node)]
    methods = [function(each) for each in node.body if isinstance(each, ast.FunctionDef) and is_public(each)]
    return "\n".join([f"### `{node.name}{of_bases(node)}`\n", *documented(node), *fields, *methods])


def of_bases(node: ast.ClassDef) -> str:
    bases = [ast.unparse(base) for base in node.bases]
    ours = [base for base in bases if base.partition("[")[0] not in FOREIGN]
    return f"({', '.join(ours)})" if ours else ""


def code_of_fields(node: ast.ClassDef) -> Iterator[str]:
    lines = [ast.unparse(field) for field in node.body if isinstance(field, ast.AnnAssign | ast.Assign)]
    if lines:
        yield fenced("\n".join(lines))


def function(node: ast.FunctionDef) -> str:
    answer = ast.unparse(node.returns).strip("'") if node.returns else "None"
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    signature = (
        f"{node.name}: {answer}" if "property" in decorators else called(node.name, arguments(node.args), answer)
    )
    return "\n".join([fenced(signature) + "\n", *documented(node)])


def called(name: str, given: list[str], answer: str) -> str:
    """On one line where it fits."""
    line = f"{name}({', '.join(given)}) -> {answer}"
    if len(line) <= WIDEST:
        return line
    return "\n".join([f"{name}(", *[f"    {each}," for each in given], f") -> {answer}"])


def arguments(node: ast.arguments) -> list[str]:
    """As the caller gives them, each with its type and default."""
    defaults = [None] * (len(node.args) - len(node.defaults)) + [f" = {ast.unparse(d)}" for d in node.defaults]
    plain = [ast.unparse(each) + (text or "") for each, text in zip(node.args, defaults, strict=True)]
    rest = [f"{stars}{ast.unparse(each)}" for stars, each in (("*", node.vararg), ("**", node.kwarg)) if each]
    return [each for each in plain if each not in ("self", "cls")] + rest


def documented(node: Definition) -> list[str]:
    text = ast.get_docstring(node)
    return [f"{text}\n"] if text else []


def is_public(node: ast.FunctionDef) -> bool:
    return not node.name.startswith("_")


def fenced(code: str) -> str:
    return f"```python\n{code}\n```"


# ── errors and settings ──────────────────────────────────────────────────────────────────────────


def errors() -> str:
    classes = {node.name: node for file in error_files() for node in ast.parse(file.read_text()).body if is_class(node)}
    rows = [
        f"| `{name}` | {', '.join(f'`{field}`' for field in fields(name, classes))} | {cell(ast.get_docstring(node))} |"
        for name, node in classes.items()
        if is_error(name, classes)
    ]
    return "\n".join(["| error | fields | message |", "|---|---|---|", *rows]) + "\n"


def error_files() -> list[Path]:
    paths = [ROOT / name for name in ERROR_FILES]
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*.py")))]
    return [file for file in files if LOCAL not in file.parents]


def is_class(node: ast.stmt) -> bool:
    return isinstance(node, ast.ClassDef)


def is_error(name: str, classes: dict[str, ast.ClassDef]) -> bool:
    """Whether it derives from CouponError, by way of others or not."""
    bases = bases_of(name, classes)
    return "CouponError" in bases or any(is_error(base, classes) for base in bases)


def fields(name: str, classes: dict[str, ast.ClassDef]) -> list[str]:
    """Its own, or else those of what it derives from."""
    if name not in classes:
        return []
    own = [ast.unparse(field.target) for field in classes[name].body if isinstance(field, ast.AnnAssign)]
    return own or [field for base in bases_of(name, classes) for field in fields(base, classes)]


def bases_of(name: str, classes: dict[str, ast.ClassDef]) -> list[str]:
    return [ast.unparse(base) for base in classes[name].bases] if name in classes else []


def settings() -> str:
    (node,) = definitions("infrastructure/settings.py", ("Settings",))
    assert isinstance(node, ast.ClassDef)
    rows = []
    for field, following in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign):
            name = f"COUPON_CLOCK_{ast.unparse(field.target).upper()}"
            rows.append(f"| `{name}` | {cell(default(field))} | {cell(reason(following))} |")
    return "\n".join(["| variable | default | |", "|---|---|---|", *rows]) + "\n"


def default(field: ast.AnnAssign) -> str:
    value = field.value
    while isinstance(value, ast.Call) and value.args:
        value = value.args[0]
    text = ast.literal_eval(value) if value else ""
    return f"`{str(text).lower() if isinstance(text, bool) else text}`" if text != "" else "none"


def reason(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return cleandoc(str(node.value.value))
    return ""


def cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page())
