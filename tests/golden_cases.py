"""Recorded inputs and outputs of public peer projects; the format is described in golden/README.md.

The folder is ``golden/`` beside this file, or the one named by the environment variable IMGRL_GOLDEN, so that a second
set in the same format runs against the same tests. Such a set may lack families, but not all of them.
"""

import json
import os
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

DEFAULT = Path(__file__).parent / "golden"


def _folder() -> Path:
    """The folder to read; a name without cases is refused, or every recorded test would pass by being empty."""
    folder = Path(os.environ.get("IMGRL_GOLDEN") or DEFAULT)
    if not any((folder / file.name).is_file() for file in DEFAULT.glob("*.json")):
        raise FileNotFoundError(
            f"IMGRL_GOLDEN must name a folder with recorded cases such as crd_loss.json, but {folder.resolve()} has "
            "none; correct the path, or unset the variable to use tests/golden."
        )
    return folder


FOLDER = _folder()


@cache
def family(name: str) -> dict[str, Any]:
    """The whole file of a family; a set from elsewhere may lack one."""
    path = FOLDER / f"{name}.json"
    if not path.exists() and FOLDER != DEFAULT:
        return {"cases": [], "tolerance": {}}
    return json.loads(path.read_text())


def cases(name: str) -> list[dict[str, Any]]:
    """All cases of a family; parametrise with ``ids=case_id``."""
    return family(name)["cases"]


def case_id(case: Any) -> str:
    """Name of a parametrised case."""
    return case["id"] if isinstance(case, dict) and "id" in case else str(case)


def decline(case: dict[str, Any], *quirks: str) -> None:
    """Skip a case marked by one of these quirks (``*`` matches any end): deliberately not copied behaviour."""
    declined = [mark for mark in case.get("quirks", []) if any(fnmatch(mark, quirk) for quirk in quirks)]
    if declined:
        pytest.skip(f"deliberately not copied: {', '.join(declined)}")


def tensor(value: Any, dtype: torch.dtype | str = torch.float32) -> torch.Tensor:
    """Nested lists as a tensor; "nan", "inf" and "-inf" are spelled out in the files."""
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return torch.tensor(_numbers(value), dtype=dtype)


def _numbers(value: Any) -> Any:
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return float(value) if isinstance(value, str) else value


def assert_close(actual: Any, expected: Any, tolerance: dict[str, float]) -> None:
    """``|actual - expected| <= atol + rtol |expected|``, in float64."""
    actual = torch.as_tensor(actual, dtype=torch.float64).detach()
    expected = tensor(expected, torch.float64)
    assert actual.shape == expected.shape
    torch.testing.assert_close(
        actual, expected, rtol=tolerance["rtol"], atol=tolerance["atol"], equal_nan=True
    )
