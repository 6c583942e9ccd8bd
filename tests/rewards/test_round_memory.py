"""Which images of a round are known, in whichever parts they were scored."""

import torch

from imgrl.rewards.features import Features
from imgrl.rewards.round_memory import RoundMemory


def images(*levels):
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)


def features(*levels):
    """Of images of these levels."""
    values = torch.tensor(levels)
    return Features(values[:, None], -values[:, None, None])


def made(*parts):
    memory = RoundMemory()
    for part in parts:
        memory.add(images(*part), features(*part))
    return memory


def levels(found):
    assert torch.equal(found.overall[:, 0], -found.patches[:, 0, 0])
    return found.overall.flatten().tolist()


def test_parts_are_found_alone_and_together():
    memory = made([9.0, 9.0], [1.0, 2.0], [3.0], [4.0, 5.0])
    assert levels(memory.find(images(4.0, 5.0))) == [4, 5]
    assert levels(memory.find(images(3.0, 4.0, 5.0))) == [3, 4, 5]
    assert levels(memory.find(images(1.0, 2.0, 3.0, 4.0, 5.0))) == [1, 2, 3, 4, 5]  # a probe came before


def test_others_are_not_found():
    memory = made([1.0, 2.0], [3.0])
    for other in ([2.0, 3.0], [1.0, 2.0], [3.0, 1.0, 2.0], [1.0, 2.0, 4.0], [0.0, 1.0, 2.0, 3.0]):
        assert memory.find(images(*other)) is None
    memory.clear()
    assert memory.find(images(3.0)) is None
