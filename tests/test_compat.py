"""The repair of torchvision: where its binary cannot load, and nowhere else."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch

from imgrl import _compat


@pytest.fixture
def defined(monkeypatch):
    """The operators declared from now on, as in a process that has not looked at torchvision yet."""
    schemas = []

    class Library:
        def __init__(self, namespace, kind):
            assert (namespace, kind) == ("torchvision", "FRAGMENT")

        def define(self, schema):
            schemas.append(schema.partition("(")[0])

    monkeypatch.setattr(_compat, "_library", None)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(torch.library, "Library", Library)
    return schemas


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Put a torchvision where Python finds it; ``loads`` says whether its binary does, None that it has none."""

    def put(loads):
        (tmp_path / "__init__.py").touch()
        if loads is not None:
            (tmp_path / "_C.so").touch()
        found = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
        monkeypatch.setattr(importlib.util, "find_spec", {"torchvision": found}.get)
        asked = []

        def load(path):
            asked.append(path)
            if not loads:
                raise OSError("libcudart.so.12: cannot open shared object file")

        monkeypatch.setattr(torch.ops, "load_library", load)
        return asked

    return put


def test_nothing_is_done_where_torchvision_works(defined, installed, tmp_path):
    asked = installed(loads=True)
    assert _compat.repair_torchvision() is False
    assert asked == [tmp_path / "_C.so"] and defined == [] and _compat._library is None


@pytest.mark.parametrize("loads", [False, None], ids=["binary for another torch", "no binary"])
def test_its_operators_are_declared_once_where_it_does_not(defined, installed, loads):
    installed(loads)
    assert _compat.repair_torchvision() is True and _compat.repair_torchvision() is True
    assert defined == ["nms", "qnms"]  # the operators for which torchvision registers fakes


def test_nothing_is_done_where_it_is_not_installed(defined, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert _compat.repair_torchvision() is False and defined == []


def test_nothing_is_done_once_it_is_imported(defined, installed, monkeypatch):
    asked = installed(loads=False)
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace())
    assert _compat.repair_torchvision() is False and defined == asked == []


def test_the_watch_steps_out_of_the_way_at_the_first_question_for_torchvision(monkeypatch):
    repaired, watch = [], _compat._Watch()
    monkeypatch.setattr(_compat, "repair_torchvision", lambda: repaired.append(True))
    monkeypatch.setattr(sys, "meta_path", [watch, *sys.meta_path])
    assert watch.find_spec("torch", None) is None and watch in sys.meta_path and not repaired
    assert watch.find_spec("torchvision", None) is None
    assert repaired == [True] and watch not in sys.meta_path
