"""Makes docs/api.md from the source: python docs/make_api.py. A test holds the page to what this says."""

import ast
from collections.abc import Iterator
from functools import cache
from inspect import cleandoc
from pathlib import Path
from typing import TypeGuard

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "api.md"

INTRODUCTION = """\
# The API

Made from the code by `make docs`; a test holds it to the code. Each section begins with what to import;
`with f(…) -> X` is a context manager that gives an X. The rules that commands are held to are in
[domain/rules.py](../domain/rules.py), what is stored is in [events.md](events.md), and the words are in the
[glossary](glossary.md).
"""

Contents = tuple[tuple[str, tuple[str, ...]], ...]
"""Source files, and the classes and functions to show of each."""
Sections = tuple[tuple[str, str, Contents], ...]
"""Heading, what to know, and what to show."""

SECTIONS: Sections = (
    (
        "The application",
        "One for each process; safe to use from several threads. Every error is a `CouponClockError`.",
        (("app.py", ("Application", "Outcome")),),
    ),
    (
        "Awaited",
        "The same for asyncio; one for each event loop.",
        (("async_app.py", ("AsyncApplication",)),),
    ),
    (
        "Commands",
        "Ids are UUIDs, made by the caller before the first try. `expected_version` refuses a command when others came "
        "first; `actor` is kept and shown.",
        (
            (
                "domain/commands.py",
                ("CreateCouponTemplate", "IncreaseStock", "ChangeValidity", "TerminateCouponTemplate"),
            ),
        ),
    ),
    (
        "Discounts",
        "Money in integer minor units.",
        (("domain/discount.py", ("FixedAmount", "ThresholdAmount", "Percentage")),),
    ),
    ("Rules of receiving and using", "", (("domain/events.py", ("ReceiveRule", "ConsumeRule")),)),
    ("Whole days", "", (("domain/validity.py", ("Validity",)),)),
    (
        "Events",
        "What `history`, `follow` and an `Outcome` hand out.",
        (
            ("domain/events.py", ("Created", "StockIncreased", "ValidityChanged", "Ended", "EndReason")),
            ("infrastructure/event_store/store.py", ("Envelope",)),
        ),
    ),
    (
        "Queries",
        "",
        (
            ("projections/coupon_templates.py", ("Filters", "Page", "TemplateView", "TemplateRow")),
            ("projections/shop_months.py", ("MonthsPage", "ShopMonth")),
        ),
    ),
    (
        "Maintenance",
        "What an operator does, as `app.maintenance`.",
        (
            ("maintenance/operations.py", ("Maintenance",)),
            ("maintenance/verify/promise.py", ("PromiseReport", "LatenessDistribution", "Violation")),
            ("maintenance/verify/stored_rows.py", ("Difference",)),
            ("maintenance/verify/rows.py", ("Part",)),
        ),
    ),
    (
        "Rebuilding",
        "",
        (("projections/rebuild/run.py", ("RebuildOptions",)), ("projections/rebuild/rebuild.py", ("Rebuilt",))),
    ),
    (
        "Another deadline",
        "For streams that are no coupon templates: [deadlines.md](deadlines.md).",
        (
            ("runtime.py", ("Runtime",)),
            ("deadlines.py", ("Deadlines",)),
            ("domain/decider.py", ("Decider",)),
            ("infrastructure/command_handling/handler.py", ("Executed",)),
        ),
    ),
    (
        "Deadlines of aggregates",
        "For applications of the eventsourcing library: [eventsourcing.md](eventsourcing.md).",
        (("aggregates.py", ("DeadlineApplication",)),),
    ),
    (
        "For tests",
        "",
        (
            ("testing/databases.py", ("throw_away_database",)),
            (
                "testing/application.py",
                ("open_test_application", "TestApplication", "TestRuntime", "TestDeadlines", "run_due"),
            ),
            ("testing/clock.py", ("ManualClock",)),
            ("testing/decider_spec.py", ("DeciderSpec",)),
            ("testing/given_when_then.py", ("given", "when", "then", "then_nothing", "then_refused")),
        ),
    ),
)
ERROR_FILES = (
    "domain",
    "infrastructure",
    "projections",
    "maintenance",
    "deadlines.py",
    "runtime.py",
    "aggregates.py",
    "app.py",
    "importing",
)
LOCAL = ROOT / "local_servers"
"""Servers for development, with errors of their own."""
ERRORS = """\
Each is one sentence that says what is wrong and what to do, with these fields as attributes. All are a
`CouponClockError`, from `coupon_clock.domain.errors`; the module of each is named without the `coupon_clock.` before
it."""
SETTINGS = "From the environment, or as arguments of `Settings.load` in small letters. Times are in seconds."

FOREIGN = ("Struct", "NamedTuple", "StrEnum", "Generic")
WIDEST = 100

Definition = ast.ClassDef | ast.FunctionDef
Classes = dict[str, ast.ClassDef]


def page() -> str:
    parts = [INTRODUCTION]
    for heading, text, contents in SECTIONS:
        parts += [f"## {heading}\n", f"{imports(contents)}\n"]
        parts += [f"{text}\n"] if text else []
        parts += [shown(definition) for file, names in contents for definition in definitions(file, names)]
    parts += [f"## Errors\n\n{ERRORS}\n", errors(), f"## Settings\n\n{SETTINGS}\n", settings()]
    return "\n".join(parts)


def imports(contents: Contents) -> str:
    names: dict[str, list[str]] = {}
    for file, here in contents:
        for name in here:
            names.setdefault(importable_from(name, file), []).append(name)
    return fenced("\n".join(imported(module, found) for module, found in names.items()))


def imported(module: str, names: list[str]) -> str:
    line = f"from {module} import {', '.join(names)}"
    return line if len(line) <= WIDEST else laid_out(f"from {module} import (", names, ")")


def importable_from(name: str, file: str) -> str:
    return "coupon_clock" if name in public() else module_of(file)


def module_of(file: str) -> str:
    return ".".join(["coupon_clock", *Path(file).with_suffix("").parts])


@cache
def public() -> tuple[str, ...]:
    """The names that can be imported from `coupon_clock`."""
    for node in ast.parse((ROOT / "app.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return tuple(ast.literal_eval(node.value))
    return ()


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
    heading = f"### `{node.name}{of_bases(node)}`\n"
    return "\n".join([heading, *documented(node), *constructor(node), *fields, *methods])


def of_bases(node: ast.ClassDef) -> str:
    bases = [ast.unparse(base) for base in node.bases]
    ours = [base for base in bases if base.partition("[")[0] not in FOREIGN]
    return f"({', '.join(ours)})" if ours else ""


def code_of_fields(node: ast.ClassDef) -> Iterator[str]:
    lines = [ast.unparse(field) for field in node.body if isinstance(field, ast.AnnAssign | ast.Assign)]
    if lines:
        yield fenced("\n".join(lines))


def constructor(node: ast.ClassDef) -> Iterator[str]:
    """None is shown where `open` is the way to one."""
    methods = {each.name: each for each in node.body if isinstance(each, ast.FunctionDef)}
    if "__init__" in methods and "open" not in methods:
        yield fenced(called(node.name, arguments(methods["__init__"].args), "")) + "\n"


def function(node: ast.FunctionDef) -> str:
    return "\n".join([fenced(signature(node)) + "\n", *documented(node)])


def signature(node: ast.FunctionDef) -> str:
    answer = ast.unparse(node.returns) if node.returns else "None"
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    if "property" in decorators:
        return f"{node.name}: {unquoted(answer)}"
    if "contextmanager" in decorators:
        given = answer.removeprefix("Iterator[").removesuffix("]")
        return called(f"with {node.name}", arguments(node.args), f" -> {unquoted(given)}")
    return called(node.name, arguments(node.args), f" -> {unquoted(answer)}")


def unquoted(annotation: str) -> str:
    return annotation.strip("'")


def called(name: str, given: list[str], answer: str) -> str:
    """On one line where it fits."""
    line = f"{name}({', '.join(given)}){answer}"
    return line if len(line) <= WIDEST else laid_out(f"{name}(", given, f"){answer}")


def laid_out(begin: str, lines: list[str], end: str) -> str:
    return "\n".join([begin, *[f"    {line}," for line in lines], end])


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
    defined = [(file, node) for file in error_files() for node in ast.parse(file.read_text()).body if is_class(node)]
    classes = {node.name: node for _, node in reversed(defined)}
    rows = [error(file, node, classes) for file, node in defined if is_error(node, classes)]
    return "\n".join(["| error | module | fields | message |", "|---|---|---|---|", *rows]) + "\n"


def error(file: Path, node: ast.ClassDef, classes: Classes) -> str:
    module = module_of(str(file.relative_to(ROOT))).removeprefix("coupon_clock.")
    named = ", ".join(f"`{field}`" for field in fields(node, classes))
    return f"| `{node.name}` | `{module}` | {named} | {cell(ast.get_docstring(node))} |"


def error_files() -> list[Path]:
    paths = [ROOT / name for name in ERROR_FILES]
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*.py")))]
    return [file for file in files if LOCAL not in file.parents]


def is_class(node: ast.stmt) -> TypeGuard[ast.ClassDef]:
    return isinstance(node, ast.ClassDef)


def is_error(node: ast.ClassDef, classes: Classes) -> bool:
    """Whether it derives from CouponClockError, by way of others or not."""
    named = any(ast.unparse(base) == "CouponClockError" for base in node.bases)
    return named or any(is_error(base, classes) for base in bases_of(node, classes))


def fields(node: ast.ClassDef, classes: Classes) -> list[str]:
    """Its own, or else those of what it derives from."""
    own = [ast.unparse(field.target) for field in node.body if isinstance(field, ast.AnnAssign)]
    return own or [field for base in bases_of(node, classes) for field in fields(base, classes)]


def bases_of(node: ast.ClassDef, classes: Classes) -> list[ast.ClassDef]:
    return [classes[name] for name in map(ast.unparse, node.bases) if name in classes]


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
