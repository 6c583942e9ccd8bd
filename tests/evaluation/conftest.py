"""A tiny stock SD3 with random weights, as a policy."""

import pytest
import torch
from tiny_models import build_sd3

from imgrl.policies import LoraSpec, load_policy
from imgrl.types import Prompt
from imgrl.world.prompts import all_prompts
from imgrl.world.vocabulary import TASKS


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluation") / "sd3"
    build_sd3().save_pretrained(path)
    return path


@pytest.fixture
def policy(folder):
    return load_policy(folder, lora=LoraSpec(rank=2, alpha=2), max_sequence_length=0)


@pytest.fixture(scope="package")
def prompts():
    """The first prompt of each of the six tasks."""
    rows = [next(iter(all_prompts(task))) for task in TASKS]
    return [Prompt(id=i, text=text, columns=metadata) for i, (text, metadata) in enumerate(rows)]
