"""Figures of a run, and the parts that plugins make theirs of."""

from sda_core.figures.base import (
    BASELINE,
    DIVERGING,
    OBSERVED,
    POSTERIOR,
    REFERENCE,
    SEQUENTIAL,
    STYLE,
    TRUTH,
    Picture,
    state_times,
    time_label,
    with_units,
)
from sda_core.figures.calibration import rank_histogram_figure, spread_skill_figure
from sda_core.figures.ensembles import fields, members, plot, posterior_series
from sda_core.figures.learning_curve import learning_curve, write_learning_curve
from sda_core.figures.maps import Maps, Plane, ensemble_maps
from sda_core.figures.observations import observations
from sda_core.figures.observed import (
    is_variable,
    observed_images,
    observed_maps,
    observed_places,
    shown_times,
)
from sda_core.figures.panels import animation, ensemble_panels, field_strip
from sda_core.figures.plane import plane_pictures, variable_pictures
from sda_core.figures.samples import sampled_trajectories

__all__ = [
    "BASELINE",
    "DIVERGING",
    "OBSERVED",
    "POSTERIOR",
    "REFERENCE",
    "SEQUENTIAL",
    "STYLE",
    "TRUTH",
    "Maps",
    "Picture",
    "Plane",
    "animation",
    "ensemble_maps",
    "ensemble_panels",
    "field_strip",
    "fields",
    "is_variable",
    "learning_curve",
    "members",
    "observations",
    "observed_images",
    "observed_maps",
    "observed_places",
    "plane_pictures",
    "plot",
    "posterior_series",
    "rank_histogram_figure",
    "sampled_trajectories",
    "shown_times",
    "spread_skill_figure",
    "state_times",
    "time_label",
    "variable_pictures",
    "with_units",
    "write_learning_curve",
]
