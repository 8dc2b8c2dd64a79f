"""Two-dimensional Kolmogorov flow."""

from typing import TYPE_CHECKING

from sda_core.plugins import exports

if TYPE_CHECKING:
    from sda_kolmogorov.kolmogorov import KolmogorovFlow as KolmogorovFlow
    from sda_kolmogorov.observation.saturation import Saturation as Saturation
    from sda_kolmogorov.observation.speed import Speed as Speed
    from sda_kolmogorov.observation.vorticity import Vorticity as Vorticity

__version__ = "0.1.0"

__getattr__, __dir__ = exports(__name__)
