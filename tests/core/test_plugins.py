"""Plugins: real distributions on disk, good and bad."""

from __future__ import annotations

import importlib
import json
import re
import signal
import subprocess
import sys
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

import sda_core
from sda_core.errors import PluginError, PluginWarning, UnknownComponentError
from sda_core.plugins import (
    KINDS,
    Component,
    PluginManager,
    Preset,
    default_manager,
    hookimpl,
    nearest,
)
from sda_core.plugins.commands import command_names

HEAD = """
from sda_core.plugins import Component, Preset, hookimpl

sda_interface = 1
"""

GOOD = (
    HEAD
    + """
@hookimpl
def sda_register_components():
    return [Component("system", "pendulum", "pendulum:Pendulum", "A pendulum")]
"""
)

PENDULUM = {"pendulum": "class Pendulum:\n    pass\n"}


def raises(error: type[Exception], *parts: str) -> Any:
    """Expect an error whose text holds these parts in order."""
    return pytest.raises(error, match="(?s)" + ".*".join(map(re.escape, parts)))


def broken_cause(site: Any) -> str:
    """Why the only plugin of a site is broken; no other is touched."""
    site.add("sda-good", GOOD, modules=PENDULUM)
    manager = site.manager()
    assert manager.get("system", "pendulum").__name__ == "Pendulum"
    (broken,) = manager.broken
    assert (broken.distribution, broken.version, broken.entry_point) == (
        "sda-bad",
        "1.0",
        "sda_bad_plugin",
    )
    with raises(UnknownComponentError, "no system 'other'", "broken", str(broken)) as caught:
        manager.get("system", "other")
    assert caught.value.__cause__ is broken.cause
    return str(broken)


def test_nearest() -> None:
    assert nearest("lorens63", ["lorenz96", "lorenz63"]) == "lorenz63"
    assert nearest("VE", ["vp", "ve"]) == "ve"
    assert nearest("pendulum", ["vp", "ve"]) is None


def test_component_and_preset_are_found(site: Any) -> None:
    presets = """
@hookimpl
def sda_register_presets():
    yield Preset("swing", __file__.replace("sda_good_plugin.py", "swing.toml"), "A swing")
"""
    text = "# why\nlength = 2\n"
    site.add("sda-good", GOOD + presets, modules=PENDULUM, files={"swing.toml": text})
    manager = site.manager()
    (found,) = manager.components("system")
    assert manager.components("kernel") == []
    assert (found.kind, found.name, found.origin) == ("system", "pendulum", "sda-good 1.0")
    assert "pendulum" not in sys.modules
    with raises(UnknownComponentError, "class builtins:int is not registered"):
        manager.name_of(int)
    assert "pendulum" not in sys.modules
    assert manager.name_of(manager.get("system", "pendulum")) == ("system", "pendulum")
    assert [p.name for p in manager.presets()] == ["swing"]
    assert manager.preset("swing").read_text() == text
    assert manager.preset("swing").load() == {"length": 2}
    with raises(UnknownComponentError, "no preset 'swings'", "did you mean 'swing'?", "swing"):
        manager.preset("swings")
    assert manager.distributions == {"sda-good": "1.0"}
    assert not manager.broken
    assert not manager.conflicts


def test_unknown_names(site: Any) -> None:
    site.add("sda-good", GOOD, modules=PENDULUM)
    manager = site.manager()
    with raises(
        UnknownComponentError,
        "no system 'pendulun': did you mean 'pendulum'? installed are: pendulum. "
        "If a plugin brings it, pip install that plugin",
    ):
        manager.get("system", "pendulun")
    with raises(UnknownComponentError, "no kernel 'mlp': installed are: none"):
        manager.get("kernel", "mlp")
    with raises(
        UnknownComponentError,
        "unknown kind of component 'sytem': did you mean 'system'? the kinds are system, kernel",
    ):
        manager.components("sytem")
    with raises(UnknownComponentError, "unknown kind of component 'sytem'"):
        manager.get("sytem", "pendulum")


def test_broken_import(site: Any) -> None:
    site.add("sda-bad", "import no_such_module\n")
    assert broken_cause(site) == (
        "sda-bad 1.0 (sda_bad_plugin): ModuleNotFoundError: No module named 'no_such_module'"
    )


def test_missing_interface(site: Any) -> None:
    site.add("sda-bad", "")
    assert broken_cause(site).endswith(
        "it does not declare the plugin interface it was made for: "
        "write `sda_interface = 1` into sda_bad_plugin"
    )


def test_other_interface(site: Any) -> None:
    site.add("sda-bad", "sda_interface = 2\n")
    assert broken_cause(site).endswith(
        "it was made for plugin interface 2, but this sda-core speaks 1.4: "
        "install a version of sda-bad made for interface 1, or an sda-core that speaks 2"
    )


def test_misspelt_hook(site: Any) -> None:
    site.add("sda-bad", HEAD + "@hookimpl\ndef sda_register_component():\n    return []\n")
    assert (
        "there is no hook 'sda_register_component': did you mean 'sda_register_components'? "
        "the hooks are sda_register_components, sda_register_presets, sda_cli_commands"
    ) in broken_cause(site)


def test_hook_without_decorator(site: Any) -> None:
    site.add("sda-bad", HEAD + "def sda_run_started(run):\n    pass\n")
    assert "its function 'sda_run_started' lacks the decorator @hookimpl" in broken_cause(site)


def test_hook_with_unknown_argument(site: Any) -> None:
    site.add("sda-bad", HEAD + "@hookimpl\ndef sda_epoch_ended(run, loss):\n    pass\n")
    assert "{'loss'} are declared in the hookimpl" in broken_cause(site)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("raise RuntimeError('boom')", "raised RuntimeError: boom"),
        ("yield Component('system', ['a'], 'b:C')", "raised TypeError: (\"'name' must be"),
        ("yield Component('system', 'a', None)", "raised TypeError: (\"'target' must be"),
        ("return ['pendulum']", "gave 'pendulum', not a Component"),
        (
            "yield Component('sytem', 'a', 'b:C')",
            "raised UnknownComponentError: unknown kind of component 'sytem': "
            "did you mean 'system'?",
        ),
        (
            "yield Component('system', 'a', 'b.C')",
            "raised PluginError: system 'a': its target 'b.C' is not of the form "
            "'package.module:Class'",
        ),
    ],
)
def test_registration_hook_fails(site: Any, body: str, text: str) -> None:
    site.add("sda-bad", HEAD + f"@hookimpl\ndef sda_register_components():\n    {body}\n")
    assert f"its hook sda_register_components {text}" in broken_cause(site)


def test_preset_hook_gives_something_else(site: Any) -> None:
    site.add("sda-bad", HEAD + "@hookimpl\ndef sda_register_presets():\n    return [1]\n")
    assert "its hook sda_register_presets gave 1, not a Preset" in broken_cause(site)


def test_duplicate_names(site: Any) -> None:
    both = HEAD + (
        "@hookimpl\n"
        "def sda_register_components():\n"
        "    yield Component('system', 'pendulum', 'pendulum:Pendulum')\n"
        "    yield Component('system', 'NAME', 'pendulum:Pendulum')\n"
        "@hookimpl\n"
        "def sda_register_presets():\n"
        "    yield Preset('swing', 'swing.toml')\n"
    )
    site.add("sda-one", both.replace("NAME", "one"), modules=PENDULUM)
    site.add("sda-two", both.replace("NAME", "two"), version="2.0")
    manager = site.manager()
    assert [c.name for c in manager.components()] == ["one", "two"]
    assert manager.presets() == []
    component, preset = manager.conflicts
    assert (component.kind, component.name) == ("system", "pendulum")
    assert (preset.kind, preset.name) == ("preset", "swing")
    assert {c.distribution for c in component.claimants} == {"sda-one", "sda-two"}
    with raises(PluginError, "system 'pendulum' is claimed by sda-", " and by sda-") as caught:
        manager.get("system", "pendulum")
    assert "sda-one 1.0 (pendulum:Pendulum)" in str(caught.value)
    assert "sda-two 2.0 (pendulum:Pendulum)" in str(caught.value)
    assert "uninstall all but one" in str(caught.value)
    with raises(PluginError, "preset 'swing' is claimed by"):
        manager.preset("swing")


@pytest.mark.parametrize(
    ("module", "cause"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("", "AttributeError: module 'pendulum' has no attribute 'Pendulum'"),
        ("Pendulum = 3", "is not a class but 3: it must name a class"),
    ],
)
def test_target_fails(site: Any, module: str, cause: str) -> None:
    site.add("sda-good", GOOD, modules={"pendulum": module})
    manager = site.manager()
    what = "system 'pendulum' of sda-good 1.0 (target 'pendulum:Pendulum')"
    with raises(PluginError, what, cause):
        manager.get("system", "pendulum")
    assert not manager.broken


def test_preset_file_is_missing_or_no_toml(site: Any) -> None:
    hook = (
        "@hookimpl\n"
        "def sda_register_presets():\n"
        "    yield Preset('gone', 'nowhere/gone.toml')\n"
        f"    yield Preset('bad', {str(site.path / 'bad.toml')!r})\n"
    )
    site.add("sda-good", HEAD + hook, files={"bad.toml": "a = "})
    manager = site.manager()
    with raises(PluginError, "preset 'gone' of sda-good 1.0 cannot be read", "Upgrade or reinst"):
        manager.preset("gone").load()
    with raises(PluginError, "preset 'bad' of sda-good 1.0 is not valid TOML: Invalid value"):
        manager.preset("bad").load()


def test_registering_objects_and_calling_hooks() -> None:
    class Recorder:
        sda_interface = 1
        seen: list[tuple[str, float]]

        def __init__(self) -> None:
            self.seen = []

        @hookimpl
        def sda_epoch_ended(self, run: Any, metrics: dict[str, float]) -> None:
            self.seen.append((run.name, metrics["loss"]))

    recorder = Recorder()
    manager = PluginManager([], {"recorder": recorder})
    manager.call("sda_epoch_ended", run=SimpleNamespace(name="r"), metrics={"loss": 0.5})
    assert recorder.seen == [("r", 0.5)]
    manager.register(recorder, "recorder")
    assert "Plugin name already registered" in str(manager.broken[0])


def with_commands(**hooks: Any) -> tuple[PluginManager, list[str]]:
    """A manager of plugins that add commands, by name, and the commands that there are then."""
    plugins = {
        name: SimpleNamespace(title=name, sda_interface=1, sda_cli_commands=hookimpl(hook))
        for name, hook in hooks.items()
    }
    for plugin in plugins.values():
        plugin.sda_cli_commands.__name__ = "sda_cli_commands"
    manager, app = PluginManager([], plugins), typer.Typer()
    app.callback()(lambda: None)
    app.command("simulate")(lambda: None)
    manager.add_cli_commands(app)
    return manager, command_names(app)


def swing(app: typer.Typer) -> None:
    app.command("swing")(lambda: None)


def test_cli_hook_that_raises_is_noted() -> None:
    def bad(app: typer.Typer) -> None:
        app.command("bad")(lambda: None)
        sys.exit("boom")

    manager, names = with_commands(good=swing, bad=bad)
    assert names == ["simulate", "swing"]
    assert str(manager.broken[0]).startswith("bad (bad): it raised SystemExit: boom")


def test_a_command_that_cannot_be_built_is_noted() -> None:
    def bad(app: typer.Typer) -> None:
        app.command("bad")(lambda: None)

        @app.command()
        def worse(what: no_such_name) -> None: ...  # noqa: F821

    manager, names = with_commands(good=swing, bad=bad)
    assert names == ["simulate", "swing"]
    assert "no_such_name" in str(manager.broken[0])


def as_group(app: typer.Typer) -> None:
    group = typer.Typer()
    group.command()(lambda: None)
    app.add_typer(group, name="simulate")


@pytest.mark.parametrize("again", [lambda app: app.command("simulate")(lambda: None), as_group])
def test_commands_that_exist_are_refused(again: Any) -> None:
    def bad(app: typer.Typer) -> None:
        again(app)
        app.command("other")(lambda: None)

    manager, names = with_commands(good=swing, bad=bad)
    assert sorted(names) == ["other", "simulate", "swing"]
    (conflict,) = manager.conflicts
    assert re.match(
        r"command 'simulate' is claimed by sda-core .* and by bad \(bad\): that of sda-core",
        str(conflict),
    )


def test_a_command_of_two_plugins_is_that_of_none() -> None:
    manager, names = with_commands(one=swing, two=swing)
    assert names == ["simulate"]
    assert "command 'swing' is claimed by" in str(manager.conflicts[0])


def test_the_options_of_sda_stay() -> None:
    manager, names = with_commands(bad=lambda app: app.callback()(lambda: None))
    assert names == ["simulate"]
    assert "sets a callback" in str(manager.broken[0])


ENDS = ["SystemExit(0)", "SystemExit('bye')", "KeyboardInterrupt", "GeneratorExit", "BaseException"]


@pytest.mark.parametrize("end", ENDS)
def test_a_plugin_that_ends_the_process_is_broken(site: Any, end: str) -> None:
    site.add("sda-bad", f"raise {end}\n")
    assert f"it raised {end.partition('(')[0]}" in broken_cause(site)


def test_a_registration_that_ends_the_process_is_broken(site: Any) -> None:
    body = "@hookimpl\ndef sda_register_presets():\n    raise KeyboardInterrupt\n"
    site.add("sda-bad", HEAD + body)
    assert "it raised KeyboardInterrupt" in broken_cause(site)


def test_a_target_that_ends_the_process_is_an_error(site: Any) -> None:
    site.add("sda-good", GOOD, modules={"pendulum": "raise SystemExit(3)"})
    with raises(PluginError, "system 'pendulum' of sda-good 1.0", "SystemExit: 3"):
        site.manager().get("system", "pendulum")


LOUD = """
import os, subprocess, sys
from sys import stdout
def loud():
    print("printed")
    stdout.write("written")
    os.write(1, b"by the system")
    subprocess.run(["echo", "by another process"])
loud()
"""


def test_what_a_plugin_prints_is_not_on_stdout(site: Any) -> None:
    hooks = (
        "@hookimpl\ndef sda_register_presets():\n    loud()\n    return []\n"
        "@hookimpl\ndef sda_cli_commands(app):\n    loud()\n"
        "    app.command('speak')(lambda: print('spoken'))\n"
    )
    site.add("sda-loud", HEAD + LOUD + hooks)
    found = site.sda("list", "--json")
    assert json.loads(found.stdout)
    for text in ("printed", "written", "by the system", "by another process"):
        assert found.stderr.count(text) == 3
    assert site.sda("speak").stdout == "spoken\n"


def test_what_a_component_prints_is_not_on_stdout(site: Any) -> None:
    site.add("sda-good", GOOD, modules={"pendulum": LOUD + "class Pendulum: pass"})
    found = site.sda("info", "system", "pendulum", "--json")
    assert found.returncode == 2
    assert found.stdout == ""
    assert "by another process" in found.stderr


def test_a_command_that_is_exited_says_so(site: Any) -> None:
    fields = "import sys\nclass Pendulum:\n    def __init__(self): sys.exit(0)\n"
    site.add("sda-good", GOOD, modules={"pendulum": fields})
    found = site.sda("simulate", "pendulum")
    assert found.returncode == 2
    assert "error:" in found.stderr


@pytest.mark.parametrize("end", [*ENDS, "ZeroDivisionError"])
def test_a_hook_that_fails_is_left_out(end: str) -> None:
    class Bad:
        sda_interface = 1
        calls = 0

        @hookimpl
        def sda_scores(self, problem: Any) -> Any:
            self.calls += 1
            exec(f"raise {end}")

    class Good:
        sda_interface = 1

        @hookimpl
        def sda_scores(self) -> Any:
            return {"one": 1}

    bad = Bad()
    manager = PluginManager([], {"good": Good(), "bad": bad})
    with pytest.warns(PluginWarning, match=rf"sda_scores of .*bad.*{end.partition('(')[0]}"):
        assert manager.call("sda_scores", problem=None, ensemble=None) == [{"one": 1}]
    assert manager.call("sda_scores", problem=None, ensemble=None) == [{"one": 1}]
    assert bad.calls == 1
    with pytest.warns(PluginWarning, match=r"sda_scores of plugin good.*KeyError: 'two'"):
        assert manager.call("sda_scores", itemgetter("two"), problem=None, ensemble=None) == []
    with manager.with_plugins([Bad()]), pytest.raises(BaseException):  # noqa: B017, PT011
        manager.call("sda_scores", problem=None, ensemble=None)


def test_ctrl_c_in_a_hook_passes() -> None:
    class Slow:
        sda_interface = 1

        @hookimpl
        def sda_scores(self) -> Any:
            signal.raise_signal(signal.SIGINT)

    manager = PluginManager([], {"slow": Slow()})
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            manager.call("sda_scores", problem=None, ensemble=None)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, ours)


def test_hook_wrappers_are_refused(site: Any) -> None:
    body = "@hookimpl(wrapper=True)\ndef sda_scores():\n    return (yield)\n"
    site.add("sda-bad", HEAD + body)
    assert "its hook sda_scores is a wrapper" in broken_cause(site)


def test_names_of_the_core_stay_the_core_s(site: Any) -> None:
    hook = (
        "@hookimpl\ndef sda_register_components():\n"
        "    yield Component('schedule', 'vp', 'pendulum:Pendulum')\n"
        "    yield Component('system', 'pendulum', 'pendulum:Pendulum')\n"
    )
    site.add("sda-bad", HEAD + hook, modules=PENDULUM)
    listed = site.sda("list", "--json")
    found = {c["name"]: c["distribution"] for c in json.loads(listed.stdout)}
    assert (found["vp"], found["pendulum"]) == ("sda-core", "sda-bad")
    assert re.search(
        r"schedule 'vp' is claimed by .*sda-bad 1.0 \(pendulum:Pendulum\).*: that of sda-core is",
        listed.stderr,
    )
    assert "claimed" not in site.sda("info", "schedule", "vp").stdout


def test_preset_path_may_be_text() -> None:
    assert Preset("a", "a.toml").path == Path("a.toml")
    assert Component("system", "a", "b.c:D.E").summary == ""


def test_core_enters_by_the_same_door() -> None:
    core = [c for c in default_manager().components() if c.distribution == "sda-core"]
    assert {"schedule", "sampler", "observation", "noise", "method", "cluster"} == {
        c.kind for c in core
    }
    assert all(c.kind in KINDS and c.summary for c in core)
    assert all(c.version == sda_core.__version__ for c in core)


@pytest.mark.parametrize("package", ["sda_core", "sda_dps", "sda_kolmogorov", "sda_lorenz"])
def test_what_type_checkers_see_is_there(package: str) -> None:
    module = importlib.import_module(package)
    stated = re.findall(r"\bas (\w+)", Path(module.__file__).read_text())
    assert stated
    assert all(hasattr(module, name) for name in stated)
    registered = [
        c for c in default_manager().components() if c.component.target.startswith(package)
    ]
    assert {c.component.target.partition(":")[2] for c in registered} <= set(stated)
    assert set(stated) <= set(dir(module))
    folder = Path(module.__file__).parent  # a submodule of a function's name would replace it
    assert not {n for n in stated if (folder / n).exists() or (folder / f"{n}.py").exists()}


def test_listing_imports_nothing_heavy(site: Any) -> None:
    site.add("sda-good", GOOD, modules={"pendulum": "import torch\nclass Pendulum: pass\n"})
    found = site.python(
        "import sys, sda_core\n"
        "from sda_core.plugins import default_manager\n"
        "from sda_core.config import component, structure\n"
        "manager = default_manager()\n"
        "assert 'pendulum' in [c.name for c in manager.components('system')], manager.broken\n"
        "manager.presets()\n"
        "print([m for m in ('torch', 'numpy', 'jax', 'ray', 'pendulum') if m in sys.modules])\n"
    )
    assert found.stdout == "[]\n", found.stderr


def test_wheel_built_and_installed_by_pip(site: Any, tmp_path: Path) -> None:
    project = tmp_path / "sda-pendulum"
    package = project / "src" / "sda_pendulum"
    package.mkdir(parents=True)
    (project / "pyproject.toml").write_text(
        """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "sda-pendulum"
version = "0.3"

[project.entry-points.sda]
pendulum = "sda_pendulum.plugin"

[tool.hatch.build.targets.wheel]
packages = ["src/sda_pendulum"]
"""
    )
    (package / "__init__.py").touch()
    (package / "pendulum.py").write_text(
        "from sda_core.config import component, option, positive\n"
        "@component\n"
        "class Pendulum:\n"
        "    '''A pendulum.'''\n"
        "    length: float = option(default=1.0, check=positive, units='m', help='Of the rod')\n"
    )
    (package / "swing.toml").write_text("# a swing\n")
    (package / "plugin.py").write_text(
        GOOD.replace("pendulum:", "sda_pendulum.pendulum:")
        + "from importlib.resources import files\n"
        "@hookimpl\n"
        "def sda_register_presets():\n"
        "    yield Preset('swing', files('sda_pendulum') / 'swing.toml')\n"
    )
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", str(tmp_path)]
    subprocess.run([*build, str(project)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    install = [*pip, "install", "--no-deps", "--no-index", "--target", str(site.path)]
    subprocess.run([*install, str(wheel)], check=True)

    listed = json.loads(site.sda("list", "system", "--json").stdout)
    assert {
        "kind": "system",
        "name": "pendulum",
        "summary": "A pendulum",
        "distribution": "sda-pendulum",
        "version": "0.3",
    } in listed
    (field,) = json.loads(site.sda("info", "system", "pendulum", "--json").stdout)["fields"]
    assert (field["name"], field["default"], field["units"]) == ("length", 1.0, "m")
    assert "wrote swing.toml" in site.sda("init", "swing").stdout
    assert (site.path / "swing.toml").read_text() == "# a swing\n"
