"""What two processes tell each other: primitives, gradients, embeddings."""

from pathlib import Path

import torch
from small_runs import PROMPTS
from two_processes import two


def check_world() -> None:
    """In each of two processes: gathers in rank order whatever the counts, sums, shares, agreement."""
    from accelerate import Accelerator

    from imgrl.training.distributed import World

    world = World(Accelerator(cpu=True))
    rank = world.rank
    assert world.size == 2 and world.main == (rank == 0)
    for counts in ((3, 1), (0, 2), (2, 2)):
        mine = torch.arange(counts[rank] * 2).view(-1, 2) + 100 * rank
        expected = torch.cat([torch.arange(n * 2).view(-1, 2) + 100 * r for r, n in enumerate(counts)])
        for dtype in (torch.int64, torch.float32, torch.float64):
            assert torch.equal(world.gather(mine.to(dtype)), expected.to(dtype))
    assert world.gather(torch.tensor([rank == 0, True])).tolist() == [True, True, False, True]
    assert not world.gather(torch.ones(1, requires_grad=True)).requires_grad
    assert world.gather_objects([{"rank": rank}] * (rank + 1)) == [{"rank": 0}, {"rank": 1}, {"rank": 1}]
    assert world.add(torch.tensor([1.5 + rank])).item() == 4.0
    assert world.share(6) == slice(3 * rank, 3 * rank + 3)
    assert world.add_counts({"a": rank, "b": 2}) == {"a": 1, "b": 4}
    assert world.any(rank == 1) is True and world.any(False) is False
    assert world.first(10.25 + rank) == 10.25
    weights = [torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(4))]
    if rank == 0:
        weights[0].grad = torch.full((2, 3), 2.0)  # the other process has none
    weights[1].grad = torch.arange(4.0) + rank
    world.add_gradients(weights)
    assert torch.equal(weights[0].grad, torch.full((2, 3), 2.0))
    assert torch.equal(weights[1].grad, 2 * torch.arange(4.0) + 1)
    world.accelerator.end_training()


def test_what_processes_tell_each_other():
    two(check_world)


def check_gradients() -> None:
    """In each of two processes: the sum of one flat buffer, bit for bit, through buckets of 16 numbers."""
    from accelerate import Accelerator

    from imgrl.training import distributed

    world = distributed.World(Accelerator(cpu=True))
    generator = torch.Generator().manual_seed(world.rank)
    weights = [torch.nn.Parameter(torch.zeros(n)) for n in (10, 6, 40, 3, 3, 14, 1, 9)]
    for weight in weights:
        weight.grad = torch.randn(len(weight), generator=generator)
    weights.append(torch.nn.Parameter(torch.zeros(6, 5)))
    weights[-1].grad = torch.randn(5, 6, generator=generator).T  # by itself, but not as it lies in memory
    expected = world.add(torch.cat([weight.grad.flatten() for weight in weights]))
    sent, reduce = [], torch.distributed.all_reduce
    distributed._BUCKET = 16 * 4
    torch.distributed.all_reduce = lambda tensor, *how: (sent.append(tensor), reduce(tensor, *how))
    world.add_gradients(weights)
    torch.distributed.all_reduce = reduce
    assert [tensor.numel() for tensor in sent] == [16, 40, 6, 15, 9, 30]
    assert sent[1].data_ptr() == weights[2].grad.data_ptr()  # too large to be copied
    assert torch.equal(torch.cat([weight.grad.flatten() for weight in weights]), expected)
    world.accelerator.end_training()


def test_gradients_are_added_up_in_buckets():
    two(check_gradients)


def check_encoding(model: Path, folder: Path) -> None:
    """In each of two processes: it encodes its share, and the other's comes from files."""
    from accelerate import Accelerator

    from imgrl.policies import load_policy
    from imgrl.training.distributed import World
    from imgrl.training.setup import _encode_ahead

    world, policy = World(Accelerator(cpu=True)), load_policy(model, train="none")
    policy._embeddings.capacity = 0
    seen, encode = [], policy._encode_text
    policy._encode_text = lambda pipeline, prompt: (seen.append(prompt), encode(pipeline, prompt))[1]
    _encode_ahead(policy, PROMPTS * 2, world, folder)
    assert [text for text in seen if text] == list(PROMPTS[world.rank :: 2])
    policy.encode(PROMPTS)
    assert policy._encoders is None
    world.accelerator.end_training()


def test_two_processes_share_the_encoding(sd3, tmp_path):
    two(check_encoding, sd3, tmp_path)
