"""Prompts from files and grammars, and the sampler that groups them into rounds."""

from imgrl.data.prompts import load_prompts
from imgrl.data.sampler import GroupSampler

__all__ = ["GroupSampler", "load_prompts"]
