import pytest
from small_lm import save

pytest.importorskip("trl", reason="imgrl lm train needs TRL")


@pytest.fixture(scope="session")
def lm(tmp_path_factory):
    return save(tmp_path_factory.mktemp("lm"))


@pytest.fixture(scope="session")
def teacher(tmp_path_factory):
    return save(tmp_path_factory.mktemp("teacher"), seed=1)
