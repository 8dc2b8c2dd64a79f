"""Trained models: saving, loading, composing."""

from __future__ import annotations

import json

import attrs
import numpy as np
import pytest
import torch

from sda_core.errors import CheckpointError, ConfigError, TrainingError
from sda_core.model import ModelConfig, TrainedModel, spec_from_json, spec_to_json
from sda_core.schedule import VE, VP
from sda_core.system import Axis, SystemSpec, Variable
from sda_mlp.mlp import MLP

SPEC = SystemSpec(
    variables=("u [m/s]", Variable("T", "K", "temperature")),
    axes=(Axis("place", np.linspace(0, 1, 3), "m"),),
    time_step=0.5,
    time_units="s",
    mean=(1.0, 280.0),
    std=(2.0, 10.0),
)


def _model(seed=0, **config) -> TrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TrainedModel.create(
            MLP(width=8, depth=1), VP(), ModelConfig(**({"window": 5} | config)), SPEC
        )


def test_round_trip(tmp_path) -> None:
    model = attrs.evolve(_model(stride=2, fold="average"), provenance={"seed": 3, "by": ["a"]})
    model.save(tmp_path / "model")
    loaded = TrainedModel.load(tmp_path / "model")
    x, t = torch.randn(2, 11, 2, 3), torch.tensor(0.4)
    before, after = (m.trajectory_denoiser()(x, t) for m in (model, loaded))
    assert torch.equal(before, after)
    assert not after.requires_grad
    assert (loaded.config.stride, loaded.config.fold) == (2, "average")
    assert loaded.provenance == {"seed": 3, "by": ["a"]}
    assert isinstance(loaded.schedule, VP)
    assert loaded.device.type == "cpu"
    scaled = loaded.standardization.to_model(torch.full((1, 2, 3), 3.0))
    assert torch.equal(scaled[0, 0], torch.ones(3))


def test_spec_round_trip() -> None:
    again = spec_from_json(json.loads(json.dumps(spec_to_json(SPEC))))
    assert again.variables == SPEC.variables
    assert (again.axes[0].name, again.axes[0].units) == ("place", "m")
    np.testing.assert_array_equal(again.axes[0].values, SPEC.axes[0].values)
    for name in ("time_step", "time_units", "mean", "std", "state_shape"):
        assert getattr(again, name) == getattr(SPEC, name)


def test_composition_can_be_changed_when_loading(tmp_path) -> None:
    _model().save(tmp_path)
    config = ModelConfig(window=5, stride=3, fold="average", chunk_size=2)
    denoiser = TrainedModel.load(tmp_path, config=config).trajectory_denoiser()
    assert (denoiser.window, denoiser.stride, denoiser.fold) == (5, 3, "average")
    assert denoiser.chunk_size == 2
    for change, message in (
        ({"window": 7}, r"model.window = 7, but the model in .* was trained with 5"),
        ({"parameterization": "edm"}, r"parameterization = 'edm', .* trained with 'eps'"),
    ):
        with pytest.raises(CheckpointError, match=message):
            TrainedModel.load(tmp_path, config=ModelConfig(**({"window": 5} | change)))


def test_errors(tmp_path) -> None:
    with pytest.raises(ConfigError, match="stride = 6 is larger than window = 5"):
        ModelConfig(window=5, stride=6)
    with pytest.raises(CheckpointError, match=r"there is no model in .*\(no model.json\)"):
        TrainedModel.load(tmp_path)
    _model().save(tmp_path)
    description, weights = tmp_path / "model.json", tmp_path / "model.safetensors"
    good = json.loads(description.read_text())
    good = {k: v for k, v in good.items() if k != "checksum"} | {"schema": 2}
    description.write_text("{")
    with pytest.raises(CheckpointError, match=r"model.json cannot be read .*: train again"):
        TrainedModel.load(tmp_path)
    description.write_text(json.dumps(good | {"schema": 99}))
    with pytest.raises(CheckpointError, match=r"has schema 99, and this version .* reads 2"):
        TrainedModel.load(tmp_path)
    description.write_text(json.dumps(good | {"kernel": {"name": "mlp", "width": 9}}))
    with pytest.raises(CheckpointError, match="holds the weights of another network"):
        TrainedModel.load(tmp_path)
    description.write_text(json.dumps(good))
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"model.safetensors"):
        TrainedModel.load(tmp_path)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors"):
        TrainedModel.load(tmp_path)


def test_a_model_without_checksum_is_read(tmp_path) -> None:
    """Schema 2, of which models are around, had none."""
    model = _model()
    model.save(tmp_path)
    description = json.loads((tmp_path / "model.json").read_text())
    del description["checksum"]
    (tmp_path / "model.json").write_text(json.dumps(description | {"schema": 2}))
    loaded = TrainedModel.load(tmp_path)
    x, t = torch.randn(1, 5, 2, 3), torch.tensor(0.4)
    assert torch.equal(loaded.denoiser(x, t), model.denoiser(x, t))


@pytest.mark.parametrize("at", [0, 9, 0.3, 0.6, 0.9, 0.9999])
@pytest.mark.parametrize("bit", [1, 128])
def test_a_flipped_bit_in_the_weights_is_noticed(tmp_path, at, bit) -> None:
    _model().save(tmp_path)
    path = tmp_path / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[at if isinstance(at, int) else int(at * len(data))] ^= bit
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match=r"is damaged: .*checksum"):
        TrainedModel.load(tmp_path)


@pytest.mark.parametrize(
    ("before", "after"), [('"window": 5', '"window": 7'), ("280.0", "281.0"), ('"K"', '"C"')]
)
def test_a_changed_description_is_noticed(tmp_path, before, after) -> None:
    _model().save(tmp_path)
    path = tmp_path / "model.json"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(CheckpointError, match=r"is damaged: .*checksum"):
        TrainedModel.load(tmp_path)


@pytest.mark.parametrize("text", ["[]", "null", '"model"', "3"])
def test_a_description_that_is_no_table(tmp_path, text) -> None:
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"cannot be read .*should hold an object"):
        TrainedModel.load(tmp_path)


@pytest.mark.parametrize(
    "odd", [[], 3, "x", {"variables": [{"name": "x", "units": True}], "extremes": [1]}]
)
@pytest.mark.parametrize("key", ["kernel", "schedule", "model", "spec", "provenance"])
def test_a_description_of_something_else(tmp_path, key, odd) -> None:
    _model().save(tmp_path)
    description = json.loads((tmp_path / "model.json").read_text())
    del description["checksum"]
    (tmp_path / "model.json").write_text(json.dumps(description | {"schema": 2, key: odd}))
    with pytest.raises((CheckpointError, ConfigError)):
        TrainedModel.load(tmp_path)


@pytest.mark.parametrize("key", ["time_step", "time_units", "variables", "axes", "mean"])
@pytest.mark.parametrize("odd", [{}, [[]], [3]])
def test_a_spec_of_something_else(tmp_path, key, odd) -> None:
    _model().save(tmp_path)
    description = json.loads((tmp_path / "model.json").read_text())
    del description["checksum"]
    description["spec"][key] = odd
    (tmp_path / "model.json").write_text(json.dumps(description | {"schema": 2}))
    with pytest.raises((CheckpointError, ConfigError)):
        TrainedModel.load(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_not_saved(tmp_path, value) -> None:
    model = _model()
    with torch.no_grad():
        next(model.denoiser.parameters())[..., 0] = value
    with pytest.raises(TrainingError, match=r"not saved, since 1 of its \d+ tensors"):
        model.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_weights_come_from_the_seed() -> None:
    a, b, c = (_model(seed).denoiser.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)


def test_it_needs_a_standardization() -> None:
    bare = attrs.evolve(SPEC, mean=None, std=None)
    model = TrainedModel.create(MLP(width=8, depth=1), VE(), ModelConfig(window=3), bare)
    with pytest.raises(ConfigError, match="has no mean and std"):
        _ = model.standardization


def test_a_model_that_comes_with_a_package(tmp_path, monkeypatch) -> None:
    package = tmp_path / "ships_a_model"
    _model(seed=4).save(package / "models" / "small")
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    x, t = torch.randn(2, 5, 2, 3), torch.tensor(0.4)
    loaded = TrainedModel.load("ships_a_model:models/small")
    assert torch.equal(loaded.denoiser(x, t), _model(seed=4).denoiser(x, t))
    assert torch.equal(
        TrainedModel.load(str(package / "models" / "small")).denoiser(x, t), loaded.denoiser(x, t)
    )
    with pytest.raises(CheckpointError, match="there is no model in"):
        TrainedModel.load("ships_a_model:models/other")
    with pytest.raises(ConfigError, match="package 'not_installed', which cannot be imported"):
        TrainedModel.load("not_installed:models/small")
