"""Guidance methods for score-based data assimilation."""

from typing import TYPE_CHECKING

from sda_core.plugins import exports

if TYPE_CHECKING:
    from sda_dps.diffpir import DiffPIR as DiffPIR
    from sda_dps.dps import DPS as DPS
    from sda_dps.gaussian import GaussianGuidance as GaussianGuidance
    from sda_dps.mmps import MMPS as MMPS
    from sda_dps.pigdm import PiGDM as PiGDM
    from sda_dps.tmpd import TMPD as TMPD
    from sda_dps.twisted_smc import TwistedSMC as TwistedSMC

__version__ = "0.1.0"

__getattr__, __dir__ = exports(__name__)
