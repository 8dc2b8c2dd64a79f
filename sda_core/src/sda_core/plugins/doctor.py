"""Whether what is installed works: the function behind ``sda doctor``."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator

import attrs

from sda_core.errors import PluginError
from sda_core.io.available_memory import available_memory
from sda_core.plugins import (
    PluginManager,
    RegisteredComponent,
    RegisteredPreset,
    default_manager,
)
from sda_core.threads import cores


@attrs.frozen
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: What was looked at.
        message: What was found.
        mend: What to do about it; empty where nothing is to be done.
        broken: Whether something does not work.
    """

    subject: str
    message: str
    mend: str = ""
    broken: bool = False


def doctor(*, manager: PluginManager | None = None) -> list[Finding]:
    """Look at the environment and at every plugin, component and preset.

    Imports all components, so this takes a while.

    Args:
        manager: The plugins; None for what is installed.
    """
    manager = manager or default_manager()
    return [
        Finding("python", f"{platform.python_version()} at {sys.executable}"),
        Finding("platform", platform.platform()),
        *_torch(),
        *_hdf5(),
        *(Finding("plugin", f"{name} {v}".rstrip()) for name, v in manager.distributions.items()),
        *_plugins(manager),
    ]


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:  # noqa: BLE001 - a bad installation can fail in any way
        yield Finding("torch", f"cannot be imported: {error}", "pip install torch", broken=True)
        return
    devices = ["cpu"]
    devices += [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    yield Finding("torch", f"{torch.__version__}, devices: {', '.join(devices)}")
    yield _threads(torch.get_num_threads())


def _threads(threads: int) -> Finding:
    """How many threads there are, and what they share."""
    usable, load = cores(), f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    chosen = os.environ.get("SDA_THREADS")
    how = "as --threads says" if chosen else "each training and sampling takes what is fastest"
    waiting = os.environ.get("OMP_WAIT_POLICY", "")
    message = (
        f"at most {threads}, {how}; {usable} usable of {os.cpu_count()} cores, load {load}, "
        f"{available_memory() / 2**30:.1f} GiB free, OMP_WAIT_POLICY={waiting}"
    )
    mend = ""
    if threads > usable:
        mend = f"set OMP_NUM_THREADS={usable}: more threads than cores are slower"
    elif waiting.upper() != "PASSIVE":
        mend = "unset OMP_WAIT_POLICY: spinning threads are many times slower on a busy machine"
    return Finding("threads", message, mend)


def _hdf5() -> Iterator[Finding]:
    try:
        import h5py
    except Exception as error:  # noqa: BLE001 - a bad installation can fail in any way
        yield Finding("hdf5", f"cannot be imported: {error}", "pip install h5py", broken=True)
        return
    yield Finding("hdf5", f"{h5py.version.hdf5_version}, h5py {h5py.__version__}")


def _plugins(manager: PluginManager) -> Iterator[Finding]:
    for plugin in manager.broken:
        name = plugin.distribution
        mend = f"pip install --upgrade {name}, or pip uninstall {name}"
        yield Finding("broken plugin", str(plugin), mend, broken=True)
    for conflict in manager.conflicts:
        names = sorted({c.distribution for c in conflict.claimants})
        mend = f"pip uninstall all but one of {', '.join(names)}"
        yield Finding("conflict", str(conflict), mend, broken=True)
    everything: list[RegisteredComponent | RegisteredPreset] = [
        *manager.components(),
        *manager.presets(),
    ]
    for registered in everything:
        try:
            registered.load()
        except PluginError as error:
            mend = f"pip install --upgrade --force-reinstall {registered.distribution}"
            yield Finding(f"broken {registered.kind}", str(error), mend, broken=True)
