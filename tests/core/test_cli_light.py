"""The commands that say what is installed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sda_core.cli import catalog
from sda_core.errors import ConfigError
from sda_core.plugins import doctor

PLUGIN = """
from pathlib import Path
from sda_core.plugins import Component, Preset, hookimpl

sda_interface = 1

@hookimpl
def sda_register_components():
    yield Component("system", "test-pendulum", "{module}:Pendulum", "A pendulum")

@hookimpl
def sda_register_presets():
    yield Preset("test-swing", Path(__file__).with_name("swing.toml"), "A swing")

@hookimpl
def sda_cli_commands(app):
    @app.command("test-swing")
    def swing():
        "Swing."
        print("swinging")
"""

PENDULUM = '''
from __future__ import annotations
from typing import ClassVar
from sda_core.config import component, option, positive

@component
class Pendulum:
    """A pendulum.

    Attributes:
        mass: Of the bob.
    """

    order: ClassVar[int] = 4
    length: float = option(default=1.0, check=positive, units="m", help="Of the rod")
    mass: float
'''

SWING = "# how long\nlength = 2\n"


@pytest.fixture
def pendulum_site(site: Any) -> Any:
    site.add(
        "sda-test-pendulum",
        PLUGIN.format(module="test_pendulum"),
        modules={"test_pendulum": PENDULUM},
        files={"swing.toml": SWING},
    )
    return site


def test_help_and_list_import_nothing_heavy(pendulum_site: Any) -> None:
    code = (
        "import sys\n"
        "from sda_core.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    heavy = {'torch', 'numpy', 'jax', 'cattrs', 'rich'} & set(sys.modules)\n"
        "    print('imported', sorted(heavy))\n"
    )
    for arguments in (["--help"], ["list"], ["presets"]):
        found = pendulum_site.python(code, *arguments)
        assert found.stdout.endswith("imported []\n"), found.stderr
    assert "init" in pendulum_site.sda("--help").stdout


def test_list(pendulum_site: Any) -> None:
    found = pendulum_site.sda("list", "--json")
    assert found.returncode == 0, found.stderr
    listed = json.loads(found.stdout)
    assert {
        "kind": "system",
        "name": "test-pendulum",
        "summary": "A pendulum",
        "distribution": "sda-test-pendulum",
        "version": "1.0",
    } in listed
    assert {"schedule", "sampler", "observation", "method"} <= {c["kind"] for c in listed}
    text = pendulum_site.sda("list", "system").stdout
    assert text.startswith("system\n")
    assert "  test-pendulum " in text
    assert text.count("\n\n") == 0


def test_list_warns_of_what_is_broken(site: Any) -> None:
    site.add("sda-test-bad", "import no_such_module\n")
    found = site.sda("list", "--json")
    assert found.returncode == 0
    assert json.loads(found.stdout)
    assert (
        "warning: broken plugin sda-test-bad 1.0 (sda_test_bad_plugin): ModuleNot" in found.stderr
    )
    assert "`sda doctor` says how to mend this" in found.stderr


def test_info(pendulum_site: Any) -> None:
    found = pendulum_site.sda("info", "system", "test-pendulum")
    assert found.stdout == (
        "system test-pendulum: A pendulum\n"
        "from sda-test-pendulum 1.0, test_pendulum:Pendulum\n"
        "\n"
        "A pendulum.\n"
        "\n"
        "Attributes:\n"
        "    mass: Of the bob.\n"
        "\n"
        "Fields\n"
        "  length [m]: float, default 1.0; greater than 0\n"
        "      Of the rod\n"
        "  mass: float, required\n"
        "      Of the bob.\n"
        "\n"
        "Declares\n"
        "  order = 4\n"
    ), found.stderr
    told = json.loads(pendulum_site.sda("info", "system", "test-pendulum", "--json").stdout)
    assert told["declarations"] == {"order": 4}
    assert [f["name"] for f in told["fields"]] == ["length", "mass"]
    assert told["documentation"].startswith("A pendulum.")
    assert told["distribution"] == "sda-test-pendulum"


def test_errors_are_short_unless_debugged(pendulum_site: Any) -> None:
    found = pendulum_site.sda("info", "system", "test-pendulun")
    assert found.returncode == 2
    assert found.stdout == ""
    assert found.stderr.startswith(
        "error: no system 'test-pendulun': did you mean 'test-pendulum'?"
    )
    assert found.stderr.count("\n") == 1
    found = pendulum_site.sda("--debug", "list", "sytem")
    assert found.returncode == 1
    assert "Traceback" in found.stderr
    assert "did you mean 'system'?" in found.stderr


def test_presets_and_init(pendulum_site: Any) -> None:
    found = pendulum_site.sda("presets", "--json")
    assert {
        "name": "test-swing",
        "summary": "A swing",
        "distribution": "sda-test-pendulum",
        "version": "1.0",
    } in json.loads(found.stdout)
    assert "test-swing" in pendulum_site.sda("presets").stdout
    found = pendulum_site.sda("init", "test-swing", "--output", "new/mine.toml")
    assert found.stdout == "wrote new/mine.toml; run it with: sda run new/mine.toml\n"
    assert (pendulum_site.path / "new" / "mine.toml").read_text() == SWING
    found = pendulum_site.sda("init", "test-swing", "--output", "new/mine.toml")
    assert found.returncode == 2
    assert found.stderr.startswith("error: new/mine.toml is there already and is not overwritten")


def test_init_that_cannot_write(
    pendulum_site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = pendulum_site.manager()
    monkeypatch.chdir(tmp_path)
    assert catalog.init("test-swing", manager=manager) == Path("test-swing.toml")
    assert Path("test-swing.toml").read_text() == SWING
    with pytest.raises(ConfigError, match=r"cannot write test-swing.toml/a.toml: "):
        catalog.init("test-swing", "test-swing.toml/a.toml", manager=manager)


def test_plugins_add_commands(pendulum_site: Any) -> None:
    assert pendulum_site.sda("test-swing").stdout == "swinging\n"
    assert "test-swing Swing." in " ".join(pendulum_site.sda("--help").stdout.split())


def test_version(pendulum_site: Any) -> None:
    assert pendulum_site.sda("--version").stdout == "0.1.0\n"


def test_doctor(pendulum_site: Any) -> None:
    subjects = {f.subject: f for f in doctor.doctor(manager=pendulum_site.manager())}
    assert {"python", "platform", "torch", "threads", "hdf5", "plugin"} == set(subjects)
    assert not any(f.broken for f in subjects.values())
    assert subjects["plugin"].message == "sda-test-pendulum 1.0"


def test_doctor_names_what_is_broken(site: Any) -> None:
    bad = PLUGIN.format(module="no_such_module")
    site.add("sda-test-one", bad, files={"swing.toml": "length ="})
    site.add("sda-test-bad", "sda_interface = 0\n")
    found = site.sda("doctor", "--json")
    assert found.returncode == 1
    report = json.loads(found.stdout)
    assert not report["ok"]
    broken = {f["subject"]: f for f in report["findings"] if "sda-test" in f["message"]}
    assert "made for plugin interface 0" in broken["broken plugin"]["message"]
    assert "pip uninstall sda-test-bad" in broken["broken plugin"]["mend"]
    assert "No module named 'no_such_module'" in broken["broken system"]["message"]
    assert "is not valid TOML" in broken["broken preset"]["message"]
    assert all(f["mend"] for f in report["findings"] if f["broken"])


def test_doctor_names_conflicts(site: Any) -> None:
    site.add("sda-test-one", PLUGIN.format(module="x"))
    site.add("sda-test-two", PLUGIN.format(module="y"))
    found = [f for f in doctor.doctor(manager=site.manager()) if f.subject == "conflict"]
    assert [f.message.split(" is claimed")[0] for f in found] == [
        "system 'test-pendulum'",
        "preset 'test-swing'",
    ]
    assert found[0].mend == "pip uninstall all but one of sda-test-one, sda-test-two"


@pytest.mark.parametrize(("module", "check"), [("torch", doctor._torch), ("h5py", doctor._hdf5)])
def test_doctor_without_a_library(
    module: str, check: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    (finding,) = check()
    assert finding.broken
    assert "cannot be imported" in finding.message
    assert finding.mend == f"pip install {module}"
