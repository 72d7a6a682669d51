"""Random networks, written as code, and the laws that hold on each of them."""

from .network import Network
from .small import small_networks
from .strategies import image_networks, networks

__all__ = ["Network", "image_networks", "networks", "small_networks"]
