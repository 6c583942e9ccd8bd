"""D7: who makes which images of a round, over a grid of processes and geometries."""

from itertools import product
from types import SimpleNamespace

import pytest
import torch
from small_runs import small_recipe

from imgrl.recipe import Batch
from imgrl.training.distributed import World
from imgrl.training.geometry import check_batch
from imgrl.training.rollout import local_rows

GRID = [
    (ranks, groups, size, micro)
    for ranks, groups, size, micro in product((1, 2, 3, 4, 6), (1, 2, 6, 12), (2, 3, 4, 9), (1, 2, 3, 6))
    if groups % micro == 0 and micro * size % ranks == 0
]


@pytest.mark.parametrize(("ranks", "groups", "size", "micro"), GRID)
def test_the_processes_make_every_image_of_a_round_once(ranks, groups, size, micro):
    recipe = small_recipe("m", "r", batch=Batch(groups=groups, group_size=size, micro_groups=micro))
    check_batch(recipe, processes=ranks)
    rows = []
    for rank in range(ranks):
        world = World(SimpleNamespace(process_index=rank, num_processes=ranks))
        mine = local_rows(recipe, world)
        assert len(mine) == groups * size // ranks
        rows.append(mine)
    assert torch.equal(torch.cat(rows).sort().values, torch.arange(groups * size))
