"""Imports go one way, read from the source of every module: a layer may use itself and those below."""

import ast
import sys
from pathlib import Path

import pytest

import imgrl

PACKAGE = Path(imgrl.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# Longest matching prefix decides.
LAYERS = {
    "imgrl": 0,
    "imgrl._compat": 0,
    "imgrl.types": 0,
    "imgrl.errors": 0,
    "imgrl.resources": 0,
    "imgrl.flow": 1,
    "imgrl.anchor": 1,
    "imgrl.objectives": 1,
    "imgrl.world": 1,
    "imgrl.evaluation.geneval": 1,  # the judge; detectors with networks belong to layer 3
    "imgrl.policies": 2,
    "imgrl.rewards": 2,
    "imgrl.data": 2,
    "imgrl.analysis": 2,
    "imgrl.recipe": 3,
    "imgrl.recipe_text": 3,
    "imgrl.training": 3,
    "imgrl.evaluation": 3,
    "imgrl.config": 4,
    "imgrl.cli": 4,
}
STRANGERS = [("imgrl.policies", "imgrl.rewards"), ("imgrl.objectives", "imgrl.world")]
MATHS_MAY_USE = {"torch", "numpy", "scipy", "PIL", "jaxtyping", "imgrl"}
HEAVY = {
    "diffusers",
    "transformers",
    "peft",
    "timm",
    "easyocr",
    "accelerate",
    "torchvision",
    "open_clip",
    "cv2",
    "trl",
}


def name_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(module):
    best = max((p for p in LAYERS if module == p or module.startswith(f"{p}.")), key=len)
    # A module directly in the package must be named above: nothing has a layer by accident.
    return LAYERS[best] if best != "imgrl" or module == "imgrl" else None


def imports(path, *, top_only=False):
    """Modules imported anywhere in a file, or only by the mere import of it; not those for type checkers."""
    found = set()

    def visit(node):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if top_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def ours(path):
    """imgrl modules a file imports (names inside a module count as the module)."""
    known = {name_of(module) for module in MODULES}
    return {name for name in imports(path) if name in known} - {"imgrl"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_has_a_layer_and_imports_only_downwards(path):
    here = layer(name_of(path))
    assert here is not None, f"{name_of(path)} has no layer; add it to LAYERS"
    upwards = {other for other in ours(path) if layer(other) > here}
    assert not upwards


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_strangers_do_not_import_each_other(path):
    for one, two in STRANGERS:
        for mine, other in ((one, two), (two, one)):
            if name_of(path).startswith(mine):
                assert not {module for module in ours(path) if module.startswith(other)}


@pytest.mark.parametrize("path", [p for p in MODULES if layer(name_of(p)) in (0, 1)], ids=name_of)
def test_the_maths_uses_torch_and_numbers_only(path):
    roots = {module.split(".")[0] for module in imports(path)}
    assert not roots - MATHS_MAY_USE - set(sys.stdlib_module_names)


# Subclasses of TRL's trainers and callback: modules of their own, which nothing may import at its top.
LAZY = {f"imgrl.training.text.{name}": {"trl"} for name in ("online", "preference", "supervised")}
LAZY["imgrl.training.text.watch"] = {"transformers"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_heavy_libraries_are_imported_where_they_are_used(path):
    imported = imports(path, top_only=True)
    assert not {module.split(".")[0] for module in imported} & HEAVY - LAZY.get(name_of(path), set())
    assert not imported & set(LAZY)


def test_the_walk_sees_imports_inside_functions(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("import a\ndef f():\n    from b.c import d\nif TYPE_CHECKING:\n    import e\n")
    assert imports(file) == {"a", "b.c", "b.c.d"}
    assert imports(file, top_only=True) == {"a"}
