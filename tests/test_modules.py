"""Every module of the package can be imported, and the maths loads no heavy library."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import imgrl

MODULES = ["imgrl", *(info.name for info in pkgutil.walk_packages(imgrl.__path__, "imgrl."))]
HEAVY = "{'diffusers', 'transformers', 'peft', 'timm', 'accelerate', 'easyocr', 'open_clip', 'torchvision'}"


@pytest.mark.parametrize("module", MODULES)
def test_module_imports(module):
    importlib.import_module(module)


def test_the_maths_loads_no_heavy_library():
    maths = "imgrl.types, imgrl.flow, imgrl.anchor, imgrl.objectives"
    code = f"import sys, imgrl, {maths}; print(sorted({HEAVY} & set(sys.modules)))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    assert out.stdout.strip() == "[]"
