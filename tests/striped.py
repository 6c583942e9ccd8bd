"""Pictures of stripes and a discriminator of them, for tests of rewards that learn."""

import torch

from imgrl.rewards.adversarial import Adversarial

SIZE = 64


def stripes(count, *, across, seed=0):
    """Images of stripes of one direction, with random colours, widths and offsets."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        width, offset = (int(torch.randint(low, 12, (), generator=generator)) for low in (4, 0))
        wave = ((torch.arange(SIZE) + offset) // width % 2).float()
        light, dark = torch.rand(2, 3, 1, 1, generator=generator)
        grid = (wave[None, :] if across else wave[:, None]).expand(SIZE, SIZE)
        made.append(light * grid + dark * (1 - grid))
    return torch.stack(made)


def made(folder, **settings):
    settings = {"side": SIZE, "hidden": 32, "lr": 1e-3, "batch": 8, **settings}
    reward = Adversarial(references=folder, **settings)
    reward.prepare(height=SIZE, width=SIZE, round_trip=lambda images: images)
    return reward
