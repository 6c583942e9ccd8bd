"""Embeddings are computed once a key, in batches, and the oldest are forgotten first."""

import torch

from imgrl.rewards.embeddings import Remembered, picture_keys


def test_each_key_once_in_batches_and_in_order():
    asked = []

    def embed(rows):
        asked.append(rows)
        return torch.tensor([[10.0 * row] for row in rows])

    memory = Remembered(100)
    assert memory(["a", "b", "a", "c"], embed, batch=2).flatten().tolist() == [0, 10, 0, 30]
    assert memory(["c", "d"], embed, batch=2).flatten().tolist() == [30, 10]
    assert asked == [[0, 1], [3], [1]]


def test_only_so_many_are_kept_but_a_call_gets_all():
    count = []

    def embed(rows):
        count.extend(rows)
        return torch.tensor([[float(row)] for row in rows])

    memory = Remembered(2)
    assert memory(["a", "b", "c"], embed, batch=8).flatten().tolist() == [0, 1, 2]
    assert len(memory._kept) == 2
    memory(["a", "b", "c"], embed, batch=8)
    assert len(count) == 4  # one of the three had been forgotten


def test_a_picture_is_known_by_its_levels_and_its_size():
    grey = torch.full((3, 3, 8, 12), 0.5)
    grey[1] += 1e-4  # the same after rounding to 8 bits
    grey[2] += 0.1
    levels, keys = picture_keys(grey)
    assert levels.shape == (3, 8, 12, 3)
    assert keys[0] == keys[1] != keys[2]
    assert picture_keys(grey[:1].transpose(2, 3))[1][0] != keys[0]
