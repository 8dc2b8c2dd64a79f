"""Sweeps: trials by Ray Tune, searched by Optuna."""

import os

# Tune reads these when it is imported or starts: files, signals, folder and text are ours.
for _name, _value in {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_MAX_PENDING_TRIALS_PG": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}.items():
    os.environ.setdefault(_name, _value)
