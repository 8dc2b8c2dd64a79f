"""Lorenz systems and other small dynamical systems."""

from typing import TYPE_CHECKING

from sda_core.plugins import exports

if TYPE_CHECKING:
    from sda_lorenz.damped_spring import DampedSpring as DampedSpring
    from sda_lorenz.lorenz63 import Lorenz63 as Lorenz63, NoisyLorenz63 as NoisyLorenz63
    from sda_lorenz.lorenz96 import Lorenz96 as Lorenz96
    from sda_lorenz.lotka_volterra import LotkaVolterra as LotkaVolterra

__version__ = "0.1.0"

__getattr__, __dir__ = exports(__name__)
