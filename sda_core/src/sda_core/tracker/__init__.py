"""Trackers: where the numbers and pictures of a run are sent."""

from sda_core.tracker.base import Histogram, Session, Tracker, TrackerSet, Value

__all__ = ["Histogram", "Session", "Tracker", "TrackerSet", "Value"]
