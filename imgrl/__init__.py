"""imgrl fine-tunes text-to-image diffusion and flow models with reinforcement learning."""

from imgrl._compat import watch_for_torchvision

watch_for_torchvision()  # before anything can import torchvision

__version__ = "0.1.0"
