"""U-Net over the grid as a score kernel."""

from typing import TYPE_CHECKING

from sda_core.plugins import exports

if TYPE_CHECKING:
    from sda_unet.unet import UNet as UNet

__version__ = "0.1.0"

__getattr__, __dir__ = exports(__name__)
