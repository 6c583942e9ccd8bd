"""Text-to-image models bent to one convention: encode, initial_noise, velocity, sample, decode, export."""

from imgrl.policies.adapters import NamedWeights
from imgrl.policies.base import Policy
from imgrl.policies.loading import blueprint, inspect_folder, load_policy, local_folder
from imgrl.policies.lora import LoraSpec

__all__ = ["LoraSpec", "NamedWeights", "Policy", "blueprint", "inspect_folder", "load_policy", "local_folder"]
