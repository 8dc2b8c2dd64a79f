"""A double pendulum as a plugin for score-based data assimilation."""
