"""What several stages need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sda_core.config import unstructure
from sda_core.data import split_path
from sda_core.data.generate import check_recipe
from sda_core.errors import ConfigError
from sda_core.experiment import Run
from sda_core.io.progress import reporting_steps
from sda_core.model import TrainedModel, device
from sda_core.random import seeded_generator

OnStep = Callable[[int, int], None]

#: Streams of random numbers under the experiment's seed.
WEIGHTS, OBSERVATION, SAMPLE, POSTERIOR, REFERENCE, BASELINE = 11, 12, 13, 14, 15, 16
COMPOSITION = 17


def stream(seed: int, stream: int) -> int:
    """A seed for one purpose."""
    return seeded_generator(seed, stream).initial_seed()


@contextmanager
def sampling_steps(run: Run, label: str, *, hook: bool = True) -> Iterator[OnStep]:
    """Report the steps of a sampler or method and, if wanted, call the hook for each."""
    with reporting_steps(run.progress, label) as report:

        def on_step(step: int, num_steps: int) -> None:
            report(step, num_steps)
            if hook:
                run.manager.call("sda_sampling_step", run=run, step=step, num_steps=num_steps)

        yield on_step


def load_model(run: Run) -> TrainedModel:
    """The model of a run, trained in it or pretrained, on the device in use.

    Raises:
        ConfigError: It was trained for another system.
    """
    config, system = run.experiment.model, run.experiment.system.spec
    model = TrainedModel.load(config.pretrained or run.model, config=config)
    for what in ("variable_names", "grid_shape", "time_step"):
        trained, asked = getattr(model.spec, what), getattr(system, what)
        if trained != asked:
            raise ConfigError(
                f"the model was trained for a system with {what} = {trained}, and this one has "
                f"{asked}: set [system] to the one it was trained on, or train a model for this one"
            )
    model.denoiser.to(device())
    return model


def check_simulated(run: Run) -> None:
    """Refuse a run without data, or with those of another configuration.

    Raises:
        ConfigError: There are none.
        DataError: They were not made by what is asked for.
    """
    if not split_path(run.data, "train").is_file():
        raise ConfigError(f"there are no data in {run.data}: run `sda simulate` first")
    experiment = run.experiment
    system = unstructure(experiment.system, manager=run.manager)
    check_recipe(experiment.system, run.data, experiment.data, experiment.seed, system)
