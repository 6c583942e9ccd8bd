"""imgrl fine-tunes text-to-image diffusion and flow models with reinforcement learning."""

from imgrl._compat import repair_torchvision

repair_torchvision()  # before anything can import torchvision

__version__ = "0.1.0"
