"""Write the parts of the documentation that come from the code.

    python docs/generate.py            # rewrites what is stale
    python docs/generate.py --check    # fails if anything is stale, and changes nothing

Pages under ``reference/`` are written whole. In other pages, what stands between

    <!-- generated: KIND ARGUMENTS -->
    <!-- /generated -->

is replaced, with one of these kinds:

    file PATH         a file of this repository, as a code block; PATH is relative to docs/
    components KIND   table of the components of a kind
    presets           table of the presets
    hooks             table of the plugin hooks

Only what this repository's own distributions bring is shown, whatever else is installed.
"""

from __future__ import annotations

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
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(_cell(c) for c in line) + " |\n" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _markdown(docstring: str) -> str:
    """A docstring as Markdown: roles and double backquotes become code."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", docstring)
    return re.sub(r"``([^`]+)``", r"`\1`", text)


def _summary(docstring: str | None) -> str:
    first = inspect.cleandoc(docstring or "").split("\n\n")[0]
    return _markdown(" ".join(first.split()))


def _default(field: FieldInfo) -> str:
    if field.required:
        return "required"
    if field.default is None:
        return "not set"
    if isinstance(field.default, bool | str):
        return f"`{json.dumps(field.default)}`"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return f"`{value}`" if isinstance(value, int | float | list) else ""


def fields_table(fields: Iterable[FieldInfo]) -> str:
    """Table of the fields of a configuration class."""
    rows = []
    for field in fields:
        units = f" [{field.units}]" if field.units else ""
        allowed = f" ({field.allowed})" if field.allowed else ""
        help_ = _markdown(field.help) + units + allowed
        rows.append([f"`{field.name}`", field.type, _default(field), help_])
    return table(["field", "type", "default", "meaning"], rows) if rows else "No fields.\n"


def _anchor(heading: str) -> str:
    """The anchor that forges give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def components_table(manager: PluginManager, kind: str, prefix: str) -> str:
    """Table of the components of a kind, with links to the reference."""
    rows = [
        [f"[`{c.name}`]({prefix}#{_anchor(f'{kind} {c.name}')})", c.summary, c.distribution]
        for c in manager.components(kind)
    ]
    return table(["name", "what it is", "distribution"], rows)


def presets_table(manager: PluginManager) -> str:
    """Table of the presets."""
    rows = [[f"`{p.name}`", p.summary, p.distribution] for p in manager.presets()]
    return table(["preset", "what it is", "distribution"], rows)


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
    """Every component with its documentation and fields."""
    parts = [f"# Components\n\n{NOTE}\n\nThe same is shown by `sda info KIND NAME`.\n"]
    for kind in KINDS:
        parts.append(f"\n## {kind}\n\n{components_table(manager, kind, '')}")
        for component in manager.components(kind):
            found = info(kind, component.name, manager=manager)
            parts.append(
                f"\n### {kind} {component.name}\n\n{found.summary} (`{found.distribution}`, "
                f"`{found.target}`).\n\n{_markdown(found.documentation)}\n\n"
                + fields_table(found.fields)
            )
            declared = ", ".join(f"`{k} = {v}`" for k, v in found.declarations.items())
            parts.append(f"\nDeclares {declared}.\n" if declared else "")
    return "".join(parts)


def experiment_page() -> str:
    """The tables of an experiment file."""
    parts = [
        f"# Experiment files\n\n{NOTE}\n\n"
        "An experiment file is TOML. These are its top-level keys and tables; a table with a "
        "`name` picks a component of that kind, whose fields are on the page "
        "[Components](components.md).\n\n"
    ]
    rows, sections = [], []
    for field in describe(Experiment):
        kind = _component_kind(field.name)
        if kind:
            what = f"[component: {kind}](components.md#{kind})"
        elif hasattr(field.default, "__attrs_attrs__") or field.name == "sample":
            what = f"[table](#{field.name})"
            cls = _table_class(field.name)
            documentation = inspect.getdoc(cls) or ""
            prose = re.split(r"^(?:Attributes|Args|Raises):", documentation, flags=re.MULTILINE)[0]
            sections.append(
                f"\n## {field.name}\n\n{_markdown(prose.strip())}\n\n{fields_table(describe(cls))}"
            )
        else:
            what = field.type
        rows.append([f"`{field.name}`", what, _default(field), field.help])
    parts.append(table(["key", "what", "default", "meaning"], rows))
    return "".join(parts + sections)


def _field_classes(name: str) -> list[Any]:
    import attrs

    field = attrs.fields_dict(attrs.resolve_types(Experiment))[name]
    return [field.type, *getattr(field.type, "__args__", ())]


def _component_kind(name: str) -> str:
    return next((c.sda_kind for c in _field_classes(name) if hasattr(c, "sda_kind")), "")


def _table_class(name: str) -> Any:
    return next(c for c in _field_classes(name) if hasattr(c, "__attrs_attrs__"))


def cli_page(manager: PluginManager) -> str:
    """Every command with its arguments and options."""
    group: Any = typer.main.get_command(make_app(manager))
    parts = [f"# The `sda` command\n\n{NOTE}\n\nThe same is shown by `sda COMMAND --help`.\n"]
    parts.append("\n" + table(["option", "meaning"], map(_option_row, _options(group))))
    for path, command in _commands(group, "sda"):
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        words = [p.name.upper() if p.required else f"[{p.name.upper()}]" for p in arguments]
        usage = " ".join([path, *words])
        parts.append(f"\n## {path}\n\n{_markdown(inspect.cleandoc(command.help or ''))}\n\n")
        parts.append(
            f"```\n{usage} [OPTIONS]\n```\n\n" if _options(command) else f"```\n{usage}\n```\n\n"
        )
        rows = [[f"`{p.name.upper()}`", p.help or ""] for p in arguments]
        rows += map(_option_row, _options(command))
        parts.append(table(["argument or option", "meaning"], rows) if rows else "")
    return "".join(parts)


def _commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def _options(command: Any) -> list[Any]:
    return [p for p in command.params if p.param_type_name == "option" and p.name != "help"]


def _option_row(option: Any) -> list[str]:
    value = "" if option.is_flag else " " + (option.metavar or option.name).upper()
    help_ = option.help or ""
    if option.envvar:
        help_ += f" Environment variable: `{option.envvar}`."
    return [", ".join(f"`{o}{value}`" for o in sorted(option.opts, key=len)), help_]


def file_block(path: str) -> str:
    """A file as a code block."""
    file = DOCS / path
    return f"```{LANGUAGES.get(file.suffix, '')}\n{file.read_text().rstrip()}\n```\n"


def fill(page: Path, manager: PluginManager) -> str:
    """The text of a page with its generated blocks renewed."""
    reference = "../" * (len(page.relative_to(DOCS).parts) - 1) + "reference/components.md"
    kinds: dict[str, Callable[[str], str]] = {
        "file": file_block,
        "components": lambda kind: components_table(manager, kind, reference),
        "presets": lambda _: presets_table(manager),
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
            texts[page] = fill(page, manager)
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
