"""Broken inputs to every stage: how many end in a traceback, hang or signal. None should.

    python benchmarks/fuzz.py                      # 2,000 inputs that reach a stage
    python benchmarks/fuzz.py --inputs 100 --first 500
    python benchmarks/fuzz.py --only 1234          # one of them, with what it says

Input n depends on n alone. Each is a change to a tiny finished run (a damped spring): to its
experiment, to single values, to a table of observations, to its data, its model or its records. A
command is then given it. Those that are refused as the experiment is read do not count.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import random
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args

import attrs
import typer

#: The run that is changed. Small, so that each command takes milliseconds.
BASE = """
seed = 0
[system]
name = "damped-spring"
[data]
trajectories = 12
length = 12
burn_in = 4
[kernel]
name = "mlp"
width = 4
depth = 1
[schedule]
name = "vp"
[model]
window = 3
[train]
epochs = 1
batch_size = 8
windows_per_trajectory = 1
[observation]
name = "select"
every = 3
std = 0.5
[sampler]
name = "ddim"
steps = 2
[guidance]
name = "mmps"
[method]
name = "sda"
[sample]
members = 2
length = 4
[assimilate]
members = 3
length = 6
[evaluate]
reference = { name = "particle-filter", particles = 8 }
"""
#: Seconds after which a command hangs, and bytes that it may allocate.
TIMEOUT, MEMORY = 120.0, 6 * 2**30

#: Outcomes that are as they should be.
FINE = ("done", "found damaged", "refused by a stage", "refused as it is read")
HUGE = 10**30
SCALARS: list[Any] = [
    *(0, 1, 2, 3, -1, 7, 2**31, 2**63, HUGE, 0.0, -0.5, 0.5, 1e-300, 1e300, 1e-9),
    *(float("nan"), float("inf"), float("-inf"), True, False, "", "x", "none", "auto", "\x00"),
    *("\u00e9\u202e", "x" * 5000, "/etc/passwd", "..", "os:getcwd", "sys:exit", "torch:isnan"),
    *("torch:linalg.inv", "builtins:print", [], [1], [1, "a"], [[1, 0], [1]], [[[]]], [HUGE]),
    *([0.5, 0.5], [["a"]], [[1e300, 0]], [[0, 0], [5, 1]], [[0.0, "x"]], [True], [-1, -1]),
    *({}, {"name": "x"}, {"a": 1}, {"name": "gaussian"}, {"name": "student-t", "dof": -1}),
    *({"name": "correlated"}, {"name": "laplace"}, {"file": "nowhere.csv"}, [{"name": "select"}]),
]
#: What a legitimate value of which takes as long as it says.
DURATIONS = (
    "epochs",
    "steps",
    "corrections",
    "trajectories",
    "length",
    "burn_in",
    "particles",
    "calibration",
)
NAMES = {
    "kernel": ("mlp", "transformer", "unet"),
    "schedule": ("vp", "ve", "log-normal", "rectified-flow"),
    "observation": (
        *("select", "linear", "index", "mask", "points", "function", "sensors", "stations"),
        *("region", "coarsen", "compose", "concatenate"),
    ),
    "sampler": ("ddim", "ddpm", "heun", "edm", "dpm-solver++", "adams-bashforth"),
    "guidance": ("mmps", "dps", "gaussian", "pigdm", "tmpd", "diffpir"),
    "method": ("sda", "particle-filter", "interpolation", "twisted-smc"),
    "system": ("damped-spring", "lotka-volterra", "lorenz63", "noisy-lorenz63"),
}
TABLE = (
    "time,variable,value,error\n0.0,position,0.1,0.5\n0.2,velocity,-0.1,0.5\n0.4,position,0.3,1\n"
)
CELLS = [
    "",
    "nan",
    "inf",
    "-1",
    "1e400",
    "x",
    "0",
    "1e-30",
    "9" * 400,
    '"',
    "position",
    "\x00",
    "0,0",
]


@attrs.frozen
class Input:
    """A command, and whether it reads an experiment first."""

    command: list[str]
    reads: bool = True


def scalar(draw: random.Random, key: str, type_: str) -> Any:
    """An odd value for a key, mostly of its type."""
    kinds = {"int": int, "float": (int, float), "bool": bool, "list": list, "'": str, "str": str}
    fitting = [kind for name, kind in kinds.items() if name in type_]
    pool = SCALARS
    if fitting and draw.random() < 0.8:
        pool = [v for v in SCALARS if isinstance(v, draw.choice(fitting))] or SCALARS
    found = draw.choice(pool)
    long = isinstance(found, int | float) and not isinstance(found, bool) and abs(found) > 1e3
    return 3 if long and key in DURATIONS and abs(found) < HUGE else found


def fields_of(kind: str, name: str) -> dict[str, str]:
    """The fields of a component and their types."""
    from sda_core.cli.catalog import info

    return {field.name: field.type for field in info(kind, name).fields}


def options_of(table: str) -> dict[str, str]:
    """The options of a table that is no component, and their types."""
    from sda_core.config import describe
    from sda_core.experiment import Experiment

    types = {a.name: a.type for a in attrs.fields(attrs.resolve_types(Experiment))}
    found = next((t for t in (*get_args(types[table]), types[table]) if attrs.has(t)), None)
    return {} if found is None else {field.name: field.type for field in describe(found)}


def tables(draw: random.Random, count: int) -> dict[str, Any]:
    """Changed values by dotted path."""
    import tomllib

    base = tomllib.loads(BASE)
    changes: dict[str, Any] = {}
    for _ in range(count):
        table = draw.choice([*base, "assimilate", "observation", "method", "sampler", "guidance"])
        if table in NAMES and draw.random() < 0.5:
            name = draw.choice(NAMES[table])
            changes[f"{table}.name"] = name
            fields = fields_of(table, name)
        elif table in NAMES:
            fields = fields_of(table, base[table]["name"])
        else:
            fields = options_of(table)
        # Compiling takes a minute, whatever else is asked for.
        field = draw.choice([f for f in fields if f != "compile"] or [""])
        changes[f"{table}.{field}".rstrip(".")] = scalar(draw, field, fields.get(field, "int"))
    return changes


def toml(value: Any) -> str:
    """A value as TOML has it."""
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{k} = {toml(v)}' for k, v in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return str(value) if isinstance(value, float) else json.dumps(value)


def set_options(changes: dict[str, Any]) -> list[str]:
    """Changes as options of the command line."""
    return [word for k, v in changes.items() for word in ("--set", f"{k}={toml(v)}")]


def stage_of(draw: random.Random, changes: dict[str, Any]) -> str:
    """A stage that the changes matter to."""
    of = {"data": "simulate", "system": "simulate", "kernel": "train", "schedule": "train"}
    of |= {"model": "train", "train": "train", "sample": "sample", "evaluate": "evaluate"}
    table = next(iter(changes)).partition(".")[0]
    return "run" if draw.random() < 0.05 else of.get(table, "assimilate")


def clear(run: Path, stage: str) -> None:
    """Remove what a stage and those after it left."""
    names = {"simulate": ["data", "model", "checkpoints"], "train": ["model", "checkpoints"]}
    for name in [*names.get(stage, ()), "posterior.nc", "samples.nc", "report.html"]:
        path = run / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)


def spoil(draw: random.Random, path: Path) -> None:
    """Damage a file."""
    data = bytearray(path.read_bytes())
    way = draw.choice(["cut", "flip", "flip", "insert", "empty", "folder", "link", "gone"])
    if way == "flip":
        for _ in range(draw.choice([1, 3, 30])):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif way == "insert":
        at = draw.randrange(len(data))
        data[at:at] = bytes(draw.randrange(256) for _ in range(draw.choice([1, 50])))
    elif way in ("cut", "empty"):
        del data[0 if way == "empty" else draw.randrange(len(data)) :]
    path.unlink()
    if way == "folder":
        path.mkdir()
    elif way == "link":
        path.symlink_to("nowhere")
    elif way != "gone":
        path.write_bytes(data)


def change_json(draw: random.Random, value: Any) -> Any:
    """Replace something in a JSON value."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        if draw.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return value | {key: change_json(draw, value[key])}
    if isinstance(value, list) and value and draw.random() < 0.8:
        at = draw.randrange(len(value))
        return [*value[:at], change_json(draw, value[at]), *value[at + 1 :]]
    return draw.choice([None, *SCALARS])


def experiment(draw: random.Random, run: Path) -> Input:
    """An experiment file with odd values."""
    from sda_core.config import apply_overrides, dump_toml, load_toml

    changes = tables(draw, draw.choice([1, 1, 2]))
    file = run.with_suffix(".toml")
    try:
        table = apply_overrides(load_toml(run / "config.toml"), set_options(changes)[1::2])
        dump_toml(table, file)
    except Exception:  # noqa: BLE001 - what cannot be written is damaged as text
        file.write_text(BASE)
    if draw.random() < 0.1:
        spoil(draw, file)
    stage = stage_of(draw, changes)
    clear(run, stage)
    return Input([stage, str(file), "--dir", str(run), "-q"])


def override(draw: random.Random, run: Path) -> Input:
    """Odd values on the command line."""
    changes = tables(draw, draw.choice([1, 1, 2]))
    stage = stage_of(draw, changes)
    clear(run, stage)
    return Input([stage, str(run), "--dir", str(run), "-q", *set_options(changes)])


def table(draw: random.Random, run: Path) -> Input:
    """A table of observations."""
    rows = [line.split(",") for line in TABLE.splitlines()]
    for _ in range(draw.choice([1, 1, 2, 5])):
        row = draw.randrange(len(rows))
        way = draw.random()
        if way < 0.6:
            rows[row][draw.randrange(len(rows[row]))] = draw.choice(CELLS)
        elif way < 0.75:
            rows[row] = rows[row][: draw.randrange(1, 5)]
        elif way < 0.9:
            rows.append(list(rows[row]))
        else:
            rows[0][draw.randrange(len(rows[0]))] = draw.choice(["depth", "group", "", "value"])
    file = (
        run / f"table{draw.choice(['.csv', '.csv', '.csv', '.csv.gz', '.nc', '.txt', '.csv.zip'])}"
    )
    file.write_bytes("\n".join(",".join(row) for row in rows).encode(errors="replace"))
    if draw.random() < 0.2:
        spoil(draw, file)
    clear(run, "assimilate")
    changes = {"assimilate.observations": {"file": str(file)}, "method.name": "particle-filter"}
    options = set_options(changes | {"method.particles": 8})
    return Input(["assimilate", str(run), "--dir", str(run), "-q", *options])


def store(draw: random.Random, run: Path) -> Input:
    """A data store."""
    spoil(draw, run / "data" / f"{draw.choice(['train', 'test', 'valid'])}.h5")
    command = draw.choice(["train", "assimilate", "verify", "inspect", "simulate"])
    if command in ("verify", "inspect"):
        return Input(["data", command, str(run / "data")], reads=False)
    clear(run, command if command != "simulate" else "assimilate")
    return Input([command, str(run), "--dir", str(run), "-q"])


def model(draw: random.Random, run: Path) -> Input:
    """A model: damaged, or odd with a right checksum."""
    path = run / "model" / "model.json"
    if draw.random() < 0.4:
        spoil(draw, run / "model" / draw.choice(["model.json", "model.safetensors"]))
    else:
        changed = change_json(draw, json.loads(path.read_text()))
        if isinstance(changed, dict):
            changed.pop("checksum", None)
            digest = hashlib.sha256((run / "model" / "model.safetensors").read_bytes())
            digest.update(json.dumps(changed, sort_keys=True).encode())
            changed["checksum"] = digest.hexdigest()
        path.write_text(json.dumps(changed))
    command = draw.choice([*("sample", "assimilate") * 4, "evaluate"])
    clear(run, "assimilate")
    return Input([command, str(run), "--dir", str(run), "-q"])


def record(draw: random.Random, run: Path) -> Input:
    """What is written about a run, and what it leaves."""
    name = draw.choice(
        [
            *("provenance.json", "provenance.json", "metrics.json", "metrics.jsonl", "config.toml"),
            *("history.json", "posterior.nc", "samples.nc", "report.html", "observations.nc"),
            *("checkpoints/best.safetensors", "reference.nc"),
        ]
    )
    path = run / name
    if name.endswith(".json") and draw.random() < 0.6:
        path.write_text(json.dumps(change_json(draw, json.loads(path.read_text()))))
    else:
        spoil(draw, path)
    command = draw.choice([*("train", "assimilate", "sample", "simulate") * 3, "run", "evaluate"])
    if name != "provenance.json" and draw.random() < 0.2:
        (run / "provenance.json").unlink()
    return Input([command, str(run), "--dir", str(run), "-q"])


KINDS: list[tuple[Callable[[random.Random, Path], Input], int]] = [
    *((experiment, 5), (override, 7), (table, 3), (store, 2), (model, 2), (record, 2)),
]


def make(number: int, base: Path, folder: Path) -> tuple[str, Input]:
    """The input of a number, in a copy of the base run."""
    draw = random.Random(f"fuzz {number}")
    kind = draw.choices([k for k, _ in KINDS], [weight for _, weight in KINDS])[0]
    for left in folder.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    run = folder / "run"
    shutil.copytree(base, run, symlinks=True)
    return kind.__name__, kind(draw, run)


def attempt(given: Input) -> tuple[str, str]:
    """Give a command its input: the outcome, and what was said."""
    import sda_core.experiment
    from sda_core.cli import main

    reached = not given.reads
    load = sda_core.experiment.load_experiment

    def noting(*arguments: Any, **options: Any) -> Any:
        nonlocal reached
        loaded = load(*arguments, **options)
        reached = True
        return loaded

    sda_core.experiment.load_experiment = noting
    said = io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
            warnings.catch_warnings(),
        ):
            main(given.command)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException as error:  # noqa: BLE001 - that is what is looked for
        return "traceback", "".join(traceback.format_exception(error)[-6:])
    finally:
        sda_core.experiment.load_experiment = load
    if not reached:
        return "refused as it is read", said.getvalue()
    return {0: "done", 1: "found damaged", 2: "refused by a stage"}.get(code, f"code {code}"), (
        said.getvalue()
    )


def work(base: Path, pipe: Any) -> None:
    """Try the inputs whose numbers come, until None does."""
    import torch

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        (Path(name) / "here").mkdir()
        while (number := pipe.recv()) is not None:
            kind, given = make(number, base, Path(name) / "here")
            pipe.send((kind, shlex.join(given.command)))
            pipe.send(attempt(given))


class Worker:
    """A process that tries inputs one by one, and is started anew when it hangs or dies."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(self.base, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, number: int) -> None:
        """Let it try an input."""
        self.number, self.began = number, time.monotonic()
        self.kind = self.command = "?"
        self.pipe.send(number)

    def result(self) -> tuple[str, str] | None:
        """Outcome and what was said; None while there is none."""
        try:
            if self.kind == "?" and self.pipe.poll(0.02):
                self.kind, self.command = self.pipe.recv()
            if self.kind != "?" and self.pipe.poll(0.02):
                found: tuple[str, str] = self.pipe.recv()
                return found
        except EOFError:
            self.process.join()
            outcome = f"signal {-(self.process.exitcode or 0)}"
            self._start()
            return outcome, ""
        if time.monotonic() - self.began < TIMEOUT:
            return None
        self.process.kill()
        self.process.join()
        self._start()
        return "hang", ""

    def stop(self) -> None:
        """End the process."""
        self.pipe.send(None)
        self.process.join()


def main(
    inputs: Annotated[int, typer.Option(help="Inputs that reach a stage.")] = 2000,
    first: Annotated[int, typer.Option(help="Number of the first one.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes.")] = 2,
    only: Annotated[int | None, typer.Option(help="Try this one, and say what it says.")] = None,
) -> None:
    """Try broken inputs, and count the outcomes."""
    counts: dict[str, Counter[str]] = {}
    reached, number, began = 0, first if only is None else only, time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        base = Path(name) / "base"
        (Path(name) / "base.toml").write_text(BASE)
        command = [sys.executable, "-m", "sda_core", "run", f"{base}.toml", "--dir", str(base)]
        subprocess.run([*command, "-q"], check=True, capture_output=True)
        group = [Worker(base) for _ in range(workers if only is None else 1)]
        idle, busy = list(group), []
        began = time.monotonic()
        while busy or (reached < inputs and (only is None or number == only)):
            while idle and reached < inputs and (only is None or number == only):
                idle[-1].give(number)
                busy.append(idle.pop())
                number += 1
            for worker in list(busy):
                if (found := worker.result()) is None:
                    continue
                busy.remove(worker)
                idle.append(worker)
                outcome, said = found
                counts.setdefault(worker.kind, Counter())[outcome] += 1
                reached += outcome != "refused as it is read"
                if outcome not in FINE or only is not None:
                    print(f"{worker.number} {worker.kind}: {outcome}\n  {worker.command[:300]}")
                    print("  " + said[-3000:].replace("\n", "\n  "), flush=True)
        for worker in group:
            worker.stop()
    for kind, found in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        print(f"{kind}: {', '.join(f'{n} {outcome}' for outcome, n in found.most_common())}")
    print(f"{reached} reached a stage, in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    typer.run(main)
