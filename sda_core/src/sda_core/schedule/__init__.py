"""Noise schedules: x_t = alpha(t) x_0 + sigma(t) eps."""

from sda_core.schedule.base import Schedule
from sda_core.schedule.log_normal import LogNormal
from sda_core.schedule.rectified_flow import RectifiedFlow
from sda_core.schedule.ve import VE
from sda_core.schedule.vp import VP, SubSubVP, SubVP

__all__ = ["VE", "VP", "LogNormal", "RectifiedFlow", "Schedule", "SubSubVP", "SubVP"]
