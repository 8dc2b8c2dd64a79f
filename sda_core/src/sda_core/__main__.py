"""``python -m sda_core`` is ``sda``."""

from sda_core.cli import main

main()
