"""A random SD3 and a random Flux on disk, recipes on the first, and a cache of text embeddings."""

import functools

import pytest
from small_runs import small_recipe
from tiny_models import build_flux, build_sd3


@pytest.fixture(scope="session")
def sd3(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "sd3"
    build_sd3().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def flux(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "flux"
    build_flux().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def embeddings(tmp_path_factory):
    return tmp_path_factory.mktemp("embeddings")


@pytest.fixture
def recipe(sd3, embeddings, tmp_path):
    """Make a small recipe that runs in ``tmp_path / "run"``."""
    return functools.partial(small_recipe, sd3, tmp_path / "run", model_embedding_folder=str(embeddings))
