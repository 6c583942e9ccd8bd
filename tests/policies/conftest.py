"""Tiny pipelines on disk, written once a session, and policies on them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import build_flux, build_sd3

from imgrl.policies import LoraSpec, Policy, load_policy

LENGTH = {"sd3": 0, "flux": 8}


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Networks this small run many times faster on one thread, most of all where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    build_sd3().save_pretrained(root / "sd3")
    build_flux().save_pretrained(root / "flux")
    return {"sd3": root / "sd3", "flux": root / "flux"}


@pytest.fixture
def load(folders: dict[str, Path]) -> Any:
    def make(family: str, **options: Any) -> Policy:
        options.setdefault("lora", LoraSpec(rank=4, alpha=6))
        return load_policy(folders[family], max_sequence_length=LENGTH[family], **options)

    return make


@pytest.fixture(params=["sd3", "flux"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def disturb() -> Callable[..., None]:
    """Add random numbers to the weights, in place of training."""

    @torch.no_grad()
    def apply(policy: Policy, size: float = 0.2) -> None:
        generator = torch.Generator().manual_seed(0)
        for parameter in policy.weights.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)

    return apply


@pytest.fixture
def example() -> Any:
    """Latents [n, C, 8, 8], sigma [n] and conditioning of n prompts for a policy."""

    def make(policy: Policy, n: int = 2) -> tuple[torch.Tensor, torch.Tensor, Any]:
        x = policy.initial_noise(range(n), 64, 64)
        return x, torch.linspace(0.9, 0.3, n), policy.encode([f"shape {i}" for i in range(n)])

    return make
