"""Shapes in the annotations of the maths layer are enforced while testing, and only then."""

import os
import sys
from pathlib import Path

from jaxtyping import install_import_hook

# The tests' tensors are small: threads would only wait for each other, badly so on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

MATHS = ["imgrl.flow", "imgrl.anchor", "imgrl.objectives"]
# The hook must be in place before imgrl is imported; ints pass for floats, as they do for Python.
install_import_hook(MATHS, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import imgrl  # noqa: E402, F401  repairs torchvision before any library imports it

sys.path.insert(0, str(Path(__file__).parent))  # helpers beside this file: golden_cases, tiny_models
