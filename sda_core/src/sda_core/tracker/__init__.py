"""Trackers: where the numbers and pictures of a run are sent."""

from sda_core.tracker.base import Histogram, Session, Sessions, Tracker, Value

__all__ = ["Histogram", "Session", "Sessions", "Tracker", "Value"]
