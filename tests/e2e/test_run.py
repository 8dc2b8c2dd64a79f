"""The main job, small: all stages through the installed plugins."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import sda_core as sda
from sda_core.errors import CheckpointError, ConfigError, DataError
from sda_core.experiment import Run
from sda_core.plugins import default_manager, hookimpl

from .small_runs import COMMON, experiments

SMALL = [
    *COMMON,
    "train.epochs=4",
    "train.batch_size=16",
    "train.validate_every=2",
    "sampler.steps=6",
    "sampler.corrections=0",
    "guidance.gamma=1.0",
    "sample.members=3",
    "assimilate.members=6",
    "assimilate.length=17",
    "evaluate.reference.particles=64",
]
small = experiments(SMALL)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    sda.run(small(), directory, progress=False)
    return directory


class Recorder:
    """A plugin that writes down what happens."""

    sda_interface = 1

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.epochs: list[int] = []
        self.checkpoints: list[Path] = []
        self.steps = 0

    @hookimpl
    def sda_run_finished(self, summary):
        self.stages.append(summary["stage"])

    @hookimpl
    def sda_diagnostics(self, stage, context):
        return {f"things_at_hand_in_{stage}": float(len(context))}

    @hookimpl
    def sda_epoch_ended(self, metrics):
        self.epochs.append(metrics["epoch"])

    @hookimpl
    def sda_checkpoint_written(self, path):
        assert path.is_file()
        self.checkpoints.append(path)

    @hookimpl
    def sda_sampling_step(self, step, num_steps):
        assert 1 <= step <= num_steps
        self.steps += 1


@pytest.fixture(scope="module")
def registered() -> Recorder:
    plugin = Recorder()
    default_manager().register(plugin, "recorder")
    return plugin


@pytest.fixture
def recorder(registered: Recorder) -> Recorder:
    registered.__init__()
    return registered


def test_everything_is_there_and_labelled(finished: Path):
    for name in ("config.toml", "provenance.json", "metrics.jsonl", "report.html"):
        assert (finished / name).stat().st_size > 0
    for name in ("posterior", "members", "observations", "learning-curve"):
        assert (finished / "figures" / f"{name}.png").stat().st_size > 5_000
    with xr.open_dataarray(finished / "posterior.nc") as posterior:
        assert posterior.dims == ("member", "time", "variable")
        assert posterior.shape == (6, 17, 3)
        np.testing.assert_allclose(posterior.time, 0.025 * np.arange(17))
        assert list(posterior["variable"].values) == ["x", "y", "z"]
        assert np.isfinite(posterior).all()
    with xr.open_dataset(finished / "observations.nc") as observations:
        assert observations.y.shape == (3, 1)
        assert observations.time_index.values.flatten().tolist() == [0, 8, 16]
        # Drawn from the truth, on the standardized scale, with a std of 0.05.
        misfit = observations.y.values[:, 0] - observations.truth.values[::8, 0] / 8
        assert 0 < np.abs(misfit).max() < 0.3
    scores = json.loads((finished / "metrics.json").read_text())
    assert set(scores) == {"posterior", "reference", "model"}
    assert scores["model"].keys() >= {f"{s}/{v}" for s in ("rmse", "mae", "r2") for v in "xyz"}
    assert 0 < scores["model"]["rmse/z"] < 10
    page = (finished / "report.html").read_text()
    assert page.index("<h2>Model</h2>") < page.index('src="figures/denoising-error.png"')
    for values in (scores["posterior"], scores["reference"]):
        assert {"log_prior", "log_likelihood", "wasserstein1", "crps", "coverage_90"} <= set(values)


def test_an_option_that_did_not_exist_then_had_its_default(finished: Path, recorder: Recorder):
    path = finished / "provenance.json"
    record = json.loads(path.read_text())
    for stage in record["stages"].values():
        for settings in stage["made_with"].values():
            if "model" in settings:
                del settings["model"]["levels"], settings["model"]["past"]
    before = path.read_text()
    path.write_text(json.dumps(record))
    try:
        sda.run(small(), finished, progress=False)
        assert recorder.stages == []
        with pytest.raises(ConfigError, match=r"model\.past \(1 there, 2 asked for\)"):
            sda.assimilate(small("model.past=2"), finished, progress=False)
    finally:
        path.write_text(before)


def test_what_is_done_is_skipped_and_what_changed_is_not(finished: Path, recorder: Recorder):
    before = (finished / "model" / "model.safetensors").stat().st_mtime_ns
    sda.run(small(), finished, progress=False)
    assert recorder.stages == []
    changed = "observation.every=4"
    sda.run(small(changed), finished, progress=False)
    assert recorder.stages == ["assimilate", "evaluate"]
    assert recorder.steps == 6  # of the sampler, one batch; none of the reference runs
    stages = json.loads((finished / "provenance.json").read_text())["stages"]
    assert stages["assimilate"]["things_at_hand_in_assimilate"] == 2
    assert stages["evaluate"]["things_at_hand_in_evaluate"] == 3
    assert (finished / "model" / "model.safetensors").stat().st_mtime_ns == before
    # Another stride composes the same model differently: sampled again, not trained again.
    recorder.stages.clear()
    sda.run(small(changed, "model.stride=8"), finished, progress=False)
    assert recorder.stages == ["sample", "assimilate", "evaluate"]
    sda.run(small(), finished, progress=False)


def test_what_was_deleted_is_made_again(finished: Path, recorder: Recorder):
    (finished / "posterior.nc").unlink()
    sda.run(small(), finished, progress=False)
    assert recorder.stages == ["assimilate"]


def test_a_run_directory_is_an_experiment(finished: Path, recorder: Recorder):
    sda.run(sda.load_experiment(finished), finished, progress=False)
    assert recorder.stages == []


def test_what_is_dear_is_not_overwritten(finished: Path):
    with pytest.raises(
        CheckpointError, match=r"train\.learning_rate \(0\.002 there, 0\.1 asked for\)"
    ):
        sda.train(small("train.learning_rate=0.1"), finished, progress=False)
    with pytest.raises(DataError, match=r"system\.rho \(28\.0 there, 30\.0 asked for\)"):
        sda.simulate(small("system.rho=30"), finished, progress=False)
    # A refused command changes nothing, the directory's own experiment included.
    assert sda.load_experiment(finished).system.rho == 28
    assert sda.load_experiment(finished).train.learning_rate == 2e-3


def test_members_do_not_depend_on_their_batch(finished: Path, tmp_path: Path):
    (tmp_path / "data").symlink_to(finished / "data")
    (tmp_path / "model").symlink_to(finished / "model")
    one = sda.assimilate(small("method.batch_size=4"), tmp_path, progress=False)
    two = sda.assimilate(small("method.batch_size=6"), tmp_path, progress=False)
    np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-3)


def test_life_cycle_hooks(tmp_path: Path, recorder: Recorder):
    experiment = small("train.checkpoint_every=2")
    sda.simulate(experiment, tmp_path, progress=False)
    sda.train(experiment, tmp_path, progress=False)
    assert recorder.stages == ["simulate", "train"]
    assert recorder.epochs == [1, 2, 3, 4]
    folder = Run(experiment, tmp_path).checkpoints.directory
    assert recorder.checkpoints == [folder / f"step-{2 * e:08d}.safetensors" for e in (2, 4)]


def test_missing_pieces_are_named(tmp_path: Path):
    system_only = sda.load_experiment("noisy-lorenz63")
    with pytest.raises(ConfigError, match=r"no \[kernel\] table, which training needs"):
        sda.train(system_only, tmp_path)
    with pytest.raises(ConfigError, match="run `sda simulate` first"):
        sda.train(small(), tmp_path)
    sda.simulate(small(), tmp_path, progress=False)
    with pytest.raises(DataError, match="run `sda assimilate` first"):
        sda.evaluate(small(), tmp_path)
    with pytest.raises(CheckpointError, match="train first"):
        sda.assimilate(small(), tmp_path, progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("assimilate.trajectory=99", "the test split has 4 trajectories: choose 0 to 3"),
        ("assimilate.length=49", "have 48 states"),
        ("observation.variables=['q']", r"there is no variable 'q'.*\['x', 'y', 'z'\]"),
    ],
)
def test_impossible_problems(finished: Path, change: str, message: str):
    with pytest.raises(ConfigError, match=message):
        sda.assimilate(small(change), finished, progress=False)


def test_unknown_experiment_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'lorenz63-quick'"):
        sda.load_experiment("lorenz63-quik")


def test_a_pretrained_model(finished, tmp_path) -> None:
    pretrained = small(f"model.pretrained='{finished / 'model'}'")
    scores = sda.run(pretrained, tmp_path, progress=False)
    assert scores == json.loads((finished / "metrics.json").read_text())
    assert not (tmp_path / "model").exists()
    assert not (tmp_path / "checkpoints").exists()
    with pytest.raises(ConfigError, match="uses a trained model, and there is nothing to train"):
        sda.train(pretrained, tmp_path, progress=False)
    other = small(f"model.pretrained='{finished / 'model'}'", "system.dt=0.05")
    with pytest.raises(ConfigError, match=r"with time_step = 0.025, and this one has 0.05"):
        sda.assimilate(other, tmp_path / "other", progress=False)


def test_a_pretrained_model_needs_no_data(finished, tmp_path) -> None:
    x = sda.assimilate(small(f"model.pretrained='{finished / 'model'}'"), tmp_path, progress=False)
    with xr.open_dataarray(finished / "posterior.nc", engine="h5netcdf") as posterior:
        assert np.array_equal(x.numpy(), posterior.to_numpy())


@pytest.mark.parametrize(
    ("change", "stage", "key"),
    [
        ("system.rho=5.0", "simulate", r"system\.rho \(28\.0 there, 5\.0 asked for\)"),
        ("seed=5", "simulate", "seed"),
        ("data.burn_in=0", "simulate", r"data\.burn_in"),
        ("kernel.width=32", "train", r"kernel\.width \(16 there, 32 asked for\)"),
        ("schedule.name=vp", "train", r"schedule\.name"),
        ("train.epochs=5", "train", r"train\.epochs"),
    ],
)
def test_no_result_of_another_configuration_is_used(
    finished: Path, tmp_path: Path, change: str, stage: str, key: str
) -> None:
    """Refused by every later stage, which leaves everything as it was."""
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    for later in (sda.sample, sda.assimilate, sda.evaluate):
        with pytest.raises(ConfigError, match=rf"`sda {stage}` .* another configuration.*{key}"):
            later(small(change), copy, progress=False)
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("change", ["guidance.gamma=0.5", "observation.every=2", "model.stride=2"])
def test_what_needs_no_training_may_change(finished: Path, tmp_path: Path, change: str) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    sda.assimilate(small(change), copy, progress=False)
    with pytest.raises(ConfigError, match="evaluate would use the result of `sda assimilate`"):
        sda.evaluate(small(), copy, progress=False)


@pytest.mark.parametrize(
    ("change", "key"), [("system.dt=0.05", "dt"), ("seed=3", "seed"), ("data.length=40", "length")]
)
def test_data_of_another_configuration_are_refused(
    finished: Path, tmp_path: Path, change: str, key: str
) -> None:
    shutil.copytree(finished / "data", tmp_path / "data")
    with pytest.raises(DataError, match=rf"differs from the one asked for in .*{key}"):
        sda.train(small(change), tmp_path, progress=False)


def test_a_split_in_the_place_of_another_is_refused(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "data", tmp_path / "data")
    shutil.copy(tmp_path / "data" / "train.h5", tmp_path / "data" / "valid.h5")
    with pytest.raises(DataError, match=r"valid\.h5 has the trajectories of the split 'train'"):
        sda.train(small(), tmp_path, progress=False)
