"""What an import costs: measured in a fresh interpreter."""

import subprocess
import sys
import time

import pytest


def loaded_after(code):
    listing = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(listing.stdout.split())


def test_import_imgrl_loads_nothing_heavy():
    assert not {"torch", "diffusers", "transformers", "torchvision", "peft"} & loaded_after("import imgrl")


def test_the_config_loads_neither_diffusers_nor_transformers():
    assert not {"diffusers", "transformers", "torchvision", "peft", "accelerate"} & loaded_after(
        "import imgrl.config"
    )


def test_help_answers_at_once():
    begun = time.perf_counter()
    code = "from imgrl.cli.main import app; app(['--help'], standalone_mode=False)"
    assert "torch" not in loaded_after(code)
    assert time.perf_counter() - begun < 5  # a second on an idle machine


def test_torchvision_is_repaired_when_first_imported():
    pytest.importorskip("torchvision")
    loaded = loaded_after("import imgrl, torchvision.transforms")
    assert "torchvision.transforms" in loaded


def test_the_watch_is_left_only_once():
    code = """import imgrl, importlib, sys
importlib.reload(imgrl)
assert sum("_Watch" in repr(finder) for finder in sys.meta_path) == 1"""
    subprocess.run([sys.executable, "-c", code], check=True)
