"""Score-based data assimilation.

Importing this package is cheap: what needs torch is imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

from sda_core.plugins import exports
from sda_core.threads import prepare

if TYPE_CHECKING:
    from sda_core.cli.catalog import (
        info as info,
        init as init,
        list_components as list_components,
        presets as presets,
    )
    from sda_core.cluster import (
        Local as Local,
    )
    from sda_core.config import (
        component as component,
        option as option,
    )
    from sda_core.data import (
        from_arrays as from_arrays,
    )
    from sda_core.denoiser import (
        FunctionDenoiser as FunctionDenoiser,
    )
    from sda_core.evaluation.scores import (
        score as score,
    )
    from sda_core.experiment import (
        Experiment as Experiment,
        load_experiment as load_experiment,
    )
    from sda_core.figures import (
        plot as plot,
    )
    from sda_core.guidance import (
        Likelihood as Likelihood,
    )
    from sda_core.method import (
        SDA as SDA,
        BlockSMC as BlockSMC,
        Interpolation as Interpolation,
        ParticleFilter as ParticleFilter,
        Problem as Problem,
        twin_experiment as twin_experiment,
    )
    from sda_core.model import (
        ModelConfig as ModelConfig,
        load_model as load_model,
    )
    from sda_core.noise import (
        Correlated as Correlated,
        Gaussian as Gaussian,
        Laplace as Laplace,
        Poisson as Poisson,
        StudentT as StudentT,
    )
    from sda_core.observation import (
        Coarsen as Coarsen,
        Compose as Compose,
        Concatenate as Concatenate,
        Function as Function,
        Index as Index,
        Linear as Linear,
        Mask as Mask,
        Points as Points,
        Region as Region,
        Select as Select,
        Sensors as Sensors,
        Stations as Stations,
    )
    from sda_core.plugins.doctor import (
        doctor as doctor,
    )
    from sda_core.sampler import (
        DDIM as DDIM,
        DDPM as DDPM,
        EDM as EDM,
        AdamsBashforth as AdamsBashforth,
        DPMSolver as DPMSolver,
        Heun as Heun,
        PredictorCorrector as PredictorCorrector,
    )
    from sda_core.schedule import (
        VE as VE,
        VP as VP,
        LogNormal as LogNormal,
        RectifiedFlow as RectifiedFlow,
        SubSubVP as SubSubVP,
        SubVP as SubVP,
    )
    from sda_core.stages import (
        assimilate as assimilate,
        evaluate as evaluate,
        run as run,
        sample as sample,
        simulate as simulate,
        train as train,
        train_seeds as train_seeds,
    )
    from sda_core.system import (
        Axis as Axis,
        SystemSpec as SystemSpec,
        Variable as Variable,
    )
    from sda_core.training import (
        fit as fit,
    )

prepare()

# No name here may be a submodule's: importing the submodule would replace the function.
__getattr__, __dir__ = exports(
    __name__,
    "builtin",
    {
        "Experiment": "experiment",
        "load_experiment": "experiment",
        "assimilate": "stages",
        "evaluate": "stages",
        "run": "stages",
        "sample": "stages",
        "simulate": "stages",
        "train": "stages",
        "train_seeds": "stages",
        "component": "config",
        "option": "config",
        "info": "cli.catalog",
        "init": "cli.catalog",
        "list_components": "cli.catalog",
        "presets": "cli.catalog",
        "doctor": "plugins.doctor",
        "from_arrays": "data",
        "FunctionDenoiser": "denoiser",
        "score": "evaluation.scores",
        "plot": "figures",
        "Likelihood": "guidance",
        "Problem": "method",
        "twin_experiment": "method",
        "ModelConfig": "model",
        "load_model": "model",
        "Axis": "system",
        "SystemSpec": "system",
        "Variable": "system",
        "fit": "training",
    },
)
