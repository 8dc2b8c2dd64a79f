"""Sweeps: trials by Ray Tune, searched by Optuna."""
