"""Write the parts of the documentation that come from the code.

    python docs/generate.py            # rewrites what is stale
    python docs/generate.py --check    # fails if anything is stale, and changes nothing

Pages under ``reference/`` are written whole. In other pages, what stands between

    <!-- generated: KIND ARGUMENTS -->
    <!-- /generated -->

is replaced, with one of these kinds:

    file PATH      a file of this repository, as a code block; PATH is relative to docs/
    code PATH NAME a class or function of such a file
    hooks          table of the plugin hooks
    results NAME   table of measured figures, from docs/results/NAME.toml

Only what this repository's own distributions bring is shown, whatever else is installed.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import attrs
import typer

from sda_core import info
from sda_core.cli import make_app
from sda_core.config import FieldInfo, describe
from sda_core.experiment import Experiment
from sda_core.plugins import KINDS, PluginManager, hooks

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
NOTE = "<!-- Written by docs/generate.py: change the code, not this page. -->"
LANGUAGES = {".py": "python", ".toml": "toml"}
_USUAL = ("1 or greater", "0 or greater", "greater than 0")  # not worth a note for each number
_BLOCK = re.compile(
    r"^<!-- generated: (?P<kind>\w+)(?: (?P<argument>[^\n]*?))? -->\n.*?^<!-- /generated -->$",
    re.MULTILINE | re.DOTALL,
)


def distributions() -> list[str]:
    """Names of this repository's distributions."""
    files = [*ROOT.glob("sda_*/pyproject.toml"), *ROOT.glob("plugins/*/pyproject.toml")]
    return sorted(tomllib.loads(file.read_text())["project"]["name"] for file in files)


def own_plugins() -> PluginManager:
    """A manager of this repository's plugins alone.

    Raises:
        RuntimeError: One of them is not installed, or is broken.
    """
    wanted = distributions()
    found = [e for e in entry_points(group="sda") if e.dist and e.dist.name in wanted]
    missing = set(wanted) - {e.dist.name for e in found if e.dist}
    manager = PluginManager(found)
    if missing or manager.broken or manager.conflicts:
        problems = [*sorted(missing), *map(str, manager.broken), *map(str, manager.conflicts)]
        raise RuntimeError(f"not installed, or broken: {'; '.join(problems)}")
    return manager


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    head, *body = (_line([_cell(c) for c in line]) for line in [header, *rows])
    return "".join([head, "|".join(["---"] * len(header)) + "\n", *body])


def _line(cells: Sequence[str]) -> str:
    """A line of a table, with outer bars only where an outer cell is empty."""
    return ("" if cells[0] else "| ") + " | ".join(cells) + ("" if cells[-1] else " |") + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _markdown(docstring: str) -> str:
    """A docstring as Markdown: roles and double backquotes become code."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", docstring)
    return re.sub(r"``([^`]+)``", r"`\1`", text)


def _summary(docstring: str | None) -> str:
    first = inspect.cleandoc(docstring or "").split("\n\n")[0]
    return _markdown(" ".join(first.split()))


def _key(field: FieldInfo) -> str:
    """A field as it stands in a file where its default can be written, else with its type."""
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    if field.required:
        return f"`{field.name}` (required)"
    if isinstance(default, bool | int | float | str | list):
        return f"`{field.name} = {json.dumps(default)}`"
    return f"`{field.name}`"


def _meaning(field: FieldInfo) -> str:
    """What a field means, its unit, and its choices or range."""
    choices = field.type.removesuffix(" | none") if "'" in field.type else ""
    allowed = "" if field.allowed in _USUAL else field.allowed
    units = f" [{field.units}]" if field.units else ""
    note = f" ({allowed or choices})" if allowed or choices else ""
    return _markdown(field.help) + units + note


def fields_table(fields: Iterable[FieldInfo]) -> str:
    """Table of the fields of a configuration class."""
    rows = [[_key(f), _meaning(f)] for f in fields]
    return table(["field", "meaning"], rows) if rows else ""


def _anchor(heading: str) -> str:
    """The anchor that forges give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def hooks_table() -> str:
    """Table of the hooks that plugins can implement."""
    found = [(n, f) for n, f in vars(hooks).items() if n.startswith("sda_") and callable(f)]
    return table(
        ["hook", "arguments", "what it is for"],
        [
            [
                f"`{n}`",
                ", ".join(f"`{p}`" for p in inspect.signature(f).parameters),
                _summary(f.__doc__),
            ]
            for n, f in found
        ],
    )


def components_page(manager: PluginManager) -> str:
    """Every component with its summary and fields, those that several share once."""
    parts = [
        f"# Components\n\n{NOTE}\n\nFields stand with their defaults. "
        "`sda info KIND NAME` shows types, ranges, equations, good values and references as well.\n"
    ]
    for kind in KINDS:
        parts.append(f"\n## {kind}\n")
        first: dict[FieldInfo, str] = {}
        fields_of = {
            c: info(kind, c.name, manager=manager).fields for c in manager.components(kind)
        }
        every = [{_hashable(f) for f in fields} for fields in fields_of.values()]
        common = set.intersection(*every) if len(every) > 1 else set()
        if common:
            fields = next(iter(fields_of.values()))
            shared_table = fields_table(f for f in fields if _hashable(f) in common)
            parts.append(f"\nAll have these fields:\n\n{shared_table}")
        for component, found in fields_of.items():
            fields = [f for f in found if _hashable(f) not in common]
            parts.append(
                f"\n### {kind} {component.name}\n\n"
                f"{component.summary} ({component.distribution}).\n"
            )
            own = [f for f in fields if _hashable(f) not in first]
            parts.append("\n" + fields_table(own) if own else "")
            shared: dict[str, list[str]] = {}
            for field in fields:
                name = first.setdefault(_hashable(field), component.name)
                if name != component.name:
                    shared.setdefault(name, []).append(f"`{field.name}`")
            for name, names in shared.items():
                where = f"[{name}](#{_anchor(f'{kind} {name}')})"
                parts.append(f"\n{', '.join(names)}: as for {where}.\n")
    return "".join(parts)


def _hashable(field: FieldInfo) -> FieldInfo:
    """A field whose default can be hashed, so that equal ones are found."""
    return attrs.evolve(field, default=repr(field.default))


def experiment_page() -> str:
    """The tables of an experiment file."""
    parts = [
        f"# Experiment files\n\n{NOTE}\n\n"
        "An experiment file is TOML. These are its keys and tables, with their defaults. A table "
        "with a `name` picks a component, whose fields are under [Components](components.md).\n\n"
    ]
    rows, sections = [], []
    for field in describe(Experiment):
        kind, what = _component_kind(field.name), _key(field)
        if kind:
            what = f"[`[{field.name}]`](components.md#{kind})"
        elif hasattr(field.default, "__attrs_attrs__") or field.name == "sample":
            what = f"[`[{field.name}]`](#{field.name})"
            cls = _table_class(field.name)
            documentation = inspect.getdoc(cls) or ""
            prose = re.split(r"^(?:Attributes|Args|Raises):", documentation, flags=re.MULTILINE)[0]
            more = prose.partition("\n\n")[2].strip()  # the table above has the first line
            text = f"{_markdown(more)}\n\n" if more else ""
            sections.append(f"\n## {field.name}\n\n{text}{fields_table(describe(cls))}")
        rows.append([what, _markdown(field.help)])
    parts.append(table(["key", "meaning"], rows))
    return "".join(parts + sections)


def _field_classes(name: str) -> list[Any]:
    field = attrs.fields_dict(attrs.resolve_types(Experiment))[name]
    return [field.type, *getattr(field.type, "__args__", ())]


def _component_kind(name: str) -> str:
    return next((c.sda_kind for c in _field_classes(name) if hasattr(c, "sda_kind")), "")


def _table_class(name: str) -> Any:
    return next(c for c in _field_classes(name) if hasattr(c, "__attrs_attrs__"))


def cli_page(manager: PluginManager) -> str:
    """Every command with its arguments and options, those that many share once."""
    group: Any = typer.main.get_command(make_app(manager))
    commands = dict(_commands(group, "sda"))
    rows = {path: [_parameter_row(p) for p in _parameters(c)] for path, c in commands.items()}
    every = [tuple(row) for command in rows.values() for row in command]
    common = [list(row) for row in dict.fromkeys(every) if every.count(row) > 1]
    parts = [
        f"# The `sda` command\n\n{NOTE}\n\nThe same is shown by `sda COMMAND --help`. "
        "These arguments and options mean the same wherever a command has them:\n\n"
    ]
    parts.append(table(["parameter", "meaning"], [*common, *map(_parameter_row, _options(group))]))
    for path, command in commands.items():
        own = [row for row in rows[path] if row not in common]
        usage = " ".join([path, *map(_usage, _parameters(command))])
        parts.append(f"\n## {path}\n\n`{usage}`\n\n")
        parts.append(_markdown(inspect.cleandoc(command.help or "")) + "\n")
        parts.append("\n" + table(["parameter", "meaning"], own) if own else "")
    return "".join(parts)


def _commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def _options(command: Any) -> list[Any]:
    return [p for p in command.params if p.param_type_name == "option" and p.name != "help"]


def _parameters(command: Any) -> list[Any]:
    return [p for p in command.params if p.param_type_name == "argument"] + _options(command)


def _usage(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.name.upper() if parameter.required else f"[{parameter.name.upper()}]")
    return f"[{max(parameter.opts, key=len)}]"


def _parameter_row(parameter: Any) -> list[str]:
    help_ = parameter.help or ""
    if parameter.param_type_name == "argument":
        return [f"`{parameter.name.upper()}`", help_]
    value = "" if parameter.is_flag else " " + (parameter.metavar or parameter.name).upper()
    if parameter.envvar:
        help_ += f" Environment variable: `{parameter.envvar}`."
    names = sorted(parameter.opts, key=len)
    return [", ".join(f"`{o}`" for o in [*names[:-1], names[-1] + value]), help_]


def file_block(path: str) -> str:
    """A file as a code block."""
    file = DOCS / path
    return f"```{LANGUAGES.get(file.suffix, '')}\n{file.read_text().rstrip()}\n```\n"


def code_block(argument: str) -> str:
    """A class or function of a file as a code block."""
    path, name = argument.split()
    source = (DOCS / path).read_text()
    found = next(n for n in ast.parse(source).body if getattr(n, "name", "") == name)
    assert isinstance(found, ast.ClassDef | ast.FunctionDef)
    start = min([found.lineno, *(d.lineno for d in found.decorator_list)])
    lines = source.splitlines()[start - 1 : found.end_lineno]
    return "```python\n" + "\n".join(lines) + "\n```\n"


def results_block(name: str) -> str:
    """Measured figures as a table; machine and commands stay in the file."""
    found = tomllib.loads((DOCS / "results" / f"{name}.toml").read_text())
    columns, rows = found["columns"], found["rows"]
    wrong = [row for row in rows if len(row) != len(columns)]
    if wrong:
        raise ValueError(f"{name}.toml: rows of another length than the columns: {wrong}")
    shown = [columns.index(c) for c in found.get("show", columns)]
    rows = [rows[i] for i in found.get("show_rows", range(len(rows)))]
    body = table([columns[i] for i in shown], [[row[i] for i in shown] for row in rows])
    return f"{body}\n{found['note'].strip()} ({name}.toml, {found['recorded']})\n"


def fill(page: Path) -> str:
    """The text of a page with its generated blocks renewed."""
    kinds: dict[str, Callable[[str], str]] = {
        "file": file_block,
        "code": code_block,
        "results": results_block,
        "hooks": lambda _: hooks_table(),
    }

    def renew(match: re.Match[str]) -> str:
        opening = match[0].splitlines()[0]
        body = kinds[match["kind"]](match["argument"] or "")
        return f"{opening}\n{body}<!-- /generated -->"

    text = page.read_text()
    if text.count("<!-- generated:") != len(_BLOCK.findall(text)):
        raise ValueError(f"{page}: a block that is generated has no end")
    return _BLOCK.sub(renew, text)


def pages() -> dict[Path, str]:
    """What every page that has generated parts should hold."""
    manager = own_plugins()
    texts = {
        DOCS / "reference" / "components.md": components_page(manager),
        DOCS / "reference" / "experiment.md": experiment_page(),
        DOCS / "reference" / "cli.md": cli_page(manager),
    }
    for page in sorted(DOCS.rglob("*.md")):
        if page not in texts and "<!-- generated:" in page.read_text():
            texts[page] = fill(page)
    return texts


def stale() -> dict[Path, str]:
    """The pages whose text on disk is not what it should be, with what it should be."""
    return {p: t for p, t in pages().items() if not p.is_file() or p.read_text() != t}


def difference(page: Path, wanted: str) -> str:
    """What differs between a page on disk and what it should be."""
    old = page.read_text() if page.is_file() else ""
    name = str(page.relative_to(ROOT))
    lines = difflib.unified_diff(old.splitlines(), wanted.splitlines(), name, name, lineterm="")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Rewrite or check; gives the exit code."""
    found = stale()
    if "--check" in arguments:
        for page, wanted in found.items():
            print(difference(page, wanted))
        if found:
            print("stale: run `python docs/generate.py`")
        return int(bool(found))
    for page, wanted in found.items():
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(wanted)
        print(f"wrote {page.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
