"""Imported once by the server that forks the tests' processes, so that each starts at once."""

import imgrl  # noqa: F401, I001
import accelerate  # noqa: F401
import diffusers  # noqa: F401
import peft  # noqa: F401
import transformers  # noqa: F401
from diffusers import StableDiffusion3Pipeline  # noqa: F401

import imgrl.policies  # noqa: F401
import imgrl.policies.loading  # noqa: F401
import imgrl.training.image_loop  # noqa: F401
import small_runs  # noqa: F401
