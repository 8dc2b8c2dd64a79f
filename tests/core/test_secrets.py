"""Passwords, keys and tokens in URLs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from sda_core.cli import main
from sda_core.config import component, structure, unstructure
from sda_core.errors import ConfigError
from sda_core.io.secrets import has_secret, redact
from sda_core.plugins import Component, PluginManager, hookimpl


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://AKIA:SECRET@bucket/x", "s3://***@bucket/x"),
        ("s3://AKIA:SEC/RET@bucket/x", "s3://***@bucket/x"),
        ("ftp://bob:SECRET@127.0.0.1:9/x", "ftp://***@127.0.0.1:9/x"),
        ("redis://:SECRET@host", "redis://***@host"),
        ("cache::https://SECRETSECRETSECRETSECRET@host/x", "cache::https://***@host/x"),
        ("https://host/x?token=SECRET", "https://host/x?token=***"),
        (
            "https://host/x?a=1&X-Amz-Signature=SECRET&b=2",
            "https://host/x?a=1&X-Amz-Signature=***&b=2",
        ),
        ("az://c/x?sig=SECRET&PASSWORD=SECRET", "az://c/x?sig=***&PASSWORD=***"),
        ("got 'gs://a:SECRET@b' and 'gs://c:SECRET@d'", "got 'gs://***@b' and 'gs://***@d'"),
    ],
)
def test_secrets_are_not_shown(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown
    assert has_secret(text)


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/path",
        "sftp://bob@host:22/path",
        "http://host:8265",
        "http://host:8265/path/x@y",
        "s3://bucket/a:b@c",
        "https://host/x?version=3",
        "a sentence: with what? key=value",
        "x" * 100_000 + "://" + "?&" * 5_000,
    ],
)
def test_what_has_none_stays(text: str) -> None:
    began = time.monotonic()
    assert redact(text) == text
    assert time.monotonic() - began < 5


@component
class Store:
    """A store."""

    sda_kind = "cluster"
    url: str
    more: dict[str, str] | None = None
    several: tuple[str, ...] = ()
    place: Path = Path()


class Plugin:
    sda_interface = 1

    @hookimpl
    def sda_register_components(self):
        return [Component("cluster", "store", f"{__name__}:Store")]


URL = "s3://AKIA:SECRET@bucket"


@pytest.mark.parametrize(
    "given", [{"url": URL}, {"more": {"a": URL}}, {"several": [URL]}, {"place": URL}]
)
def test_secrets_are_refused_wherever_they_stand(given) -> None:
    with pytest.raises(ConfigError, match=rf"{next(iter(given))}.*holds a password") as raised:
        structure(Store, {"url": "x", **given})
    assert "SECRET@" not in str(raised.value)
    manager = PluginManager((), {"plugin": Plugin()})
    with pytest.raises(ConfigError, match=r"url: this URL holds a password") as raised:
        unstructure(Store(url=URL), manager=manager)
    assert "SECRET@" not in str(raised.value)


@pytest.mark.parametrize(
    "change", [f"cluster.storage={URL}", f"cluster.cpus={URL}", f"title={URL}", URL, f"{URL}=1"]
)
def test_commands_do_not_show_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    run = ["simulate", "lorenz63-quick", "--set", "cluster.name=ray", "--set", change]
    with pytest.raises(SystemExit) as end:
        main([*run, "--dir", str(tmp_path / "run")])
    assert end.value.code == 2
    said = "".join(capsys.readouterr())
    assert "SECRET@" not in said
    assert "error: " in said
    assert not (tmp_path / "run").exists()
