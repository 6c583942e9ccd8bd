"""What tests of sharded models run in each of two processes."""

import contextlib
import functools
import os
from unittest import mock

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}
"""What `accelerate launch --use_fsdp --fsdp_version 2` leaves, with its defaults."""


@contextlib.contextmanager
def cpus_may_shard():
    """Accelerate shards over GPUs and their like alone; here it takes a group of CPUs for one of these."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    original = AcceleratorState.__init__

    def patched(self, *args, **kwargs):
        shared = PartialState(cpu=True)._shared_state
        if shared["distributed_type"] == DistributedType.MULTI_CPU:
            shared["distributed_type"] = DistributedType.MULTI_GPU
        original(self, *args, **kwargs)

    with mock.patch.object(AcceleratorState, "__init__", patched):
        yield


def train(arguments, environment=None):
    """A target: `imgrl lm train` under FSDP2."""
    from two_processes import command

    os.environ.update(FSDP2 | (environment or {}))
    with cpus_may_shard():
        command(["lm", "train", *arguments])


def shard(model, *, by_layer=True):
    """As accelerate does it: layer by layer, the last ones kept whole after a forward pass; or all as one."""
    from torch.distributed.fsdp import fully_shard

    if not by_layer:
        fully_shard(model)  # as the root it is kept whole after a forward pass
        return
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model.model.embed_tokens)
    fully_shard([model.model.norm, model.lm_head], reshard_after_forward=False)
    fully_shard(model)


def moved(model, *, by=0.05, seed=1):
    """Other weights: every whole tensor plus noise of its own."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + by * torch.randn(tensor.shape, generator=generator)
        for name, tensor in model.state_dict().items()
    }


def write(model, state):
    """Give a sharded model whole tensors, without the code under test."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    set_model_state_dict(model, dict(state), options=StateDictOptions(full_state_dict=True))


def models(lm):
    """A model before training, the same after some, and one that begins as the first and is sharded."""
    import torch.distributed as dist
    from transformers import AutoModelForCausalLM

    dist.init_process_group("gloo")
    base, after, sharded = (AutoModelForCausalLM.from_pretrained(lm) for _ in range(3))
    after.load_state_dict(moved(base))
    return base, after, sharded


def rows_of_two(rank):
    """Two sequences of this process, the first with a token that carries no loss."""
    import torch

    from imgrl.training.text.heads import Rows

    ids = torch.randint(3, 40, (2, 9), generator=torch.Generator().manual_seed(10 + rank))
    mask = torch.ones(2, 4, dtype=torch.bool)
    mask[0, -1] = False
    return Rows(input_ids=ids, attention_mask=torch.ones_like(ids), tokens=ids[:, -4:], mask=mask)


def log_probs(model, rows):
    """[n, t, v], of whole logits."""
    return model(input_ids=rows.input_ids).logits[:, -rows.tokens.shape[1] - 1 : -1].log_softmax(-1)


def parts(model):
    """What this process holds of the trained weights."""
    return [parameter.detach().to_local().clone() for parameter in model.parameters()]


def require_mean_gradient(sharded, plain):
    """That of a model which is not sharded, averaged over the processes."""
    import torch

    for own, other in zip(sharded.parameters(), plain.parameters(), strict=True):
        torch.distributed.all_reduce(other.grad)
        torch.testing.assert_close(own.grad.full_tensor(), other.grad / 2, atol=1e-5, rtol=1e-4)
        assert other.grad.any()


def copies_speak_as_the_model_did(lm, by_layer):
    """A target. What is expected comes from models that were never sharded."""
    import torch

    from imgrl.training.text.copies import WeightCopy
    from imgrl.training.text.scoring import live_fields
    from imgrl.training.text.steps import no_loss

    base, after, sharded = models(lm)
    rows = rows_of_two(torch.distributed.get_rank())
    copy = WeightCopy(sharded)
    shard(sharded, by_layer=by_layer)
    write(sharded, after.state_dict())
    before = parts(sharded)
    with torch.no_grad():
        then, now = log_probs(base, rows), log_probs(after, rows)
        sharded(input_ids=rows.input_ids)  # leaves the last layers gathered, with the weights of now
    sharded.train()
    with copy.applied(sharded):
        assert not sharded.training
        assert torch.equal(log_probs(sharded, rows), then)
    assert sharded.training and all(map(torch.equal, parts(sharded), before))
    with torch.no_grad():
        assert torch.equal(log_probs(sharded, rows), now) and not torch.equal(now, then)
    try:
        with copy.applied(sharded):
            sharded(input_ids=rows.input_ids)
            raise RuntimeError
    except RuntimeError:
        pass
    with torch.no_grad():
        assert torch.equal(log_probs(sharded, rows), now)

    fields = live_fields(sharded, rows, needs=["reverse_kl", "anchor"], base=copy)
    live = log_probs(after, rows)
    kl = (live.exp() * (live - then)).sum(-1)
    said, kept = (x.gather(-1, rows.tokens[..., None])[..., 0] for x in (live, then))
    for name, expected in (("log_prob", said), ("reverse_kl", kl), ("anchor", kept)):
        torch.testing.assert_close(fields[name][rows.mask], expected[rows.mask])
    # The gradient is the live model's, averaged over the processes' rows.
    (fields["log_prob"] + fields["reverse_kl"])[rows.mask].sum().backward()
    (said + kl)[rows.mask].sum().backward()
    require_mean_gradient(sharded, after)

    # A process without a loss token goes along with all that the other one gathers.
    score = functools.partial(live_fields, sharded, needs=["reverse_kl", "anchor"], base=copy)
    sharded.zero_grad()
    after.zero_grad()
    if torch.distributed.get_rank() == 0:
        no_loss(sharded, rows, score).backward()
        for parameter in after.parameters():
            parameter.grad = torch.zeros_like(parameter)
    else:
        score(rows)["reverse_kl"][rows.mask].sum().backward()
        live = log_probs(after, rows)
        (live.exp() * (live - then)).sum(-1)[rows.mask].sum().backward()
    require_mean_gradient(sharded, after)


def copies_follow_and_are_kept(lm):
    """A target: shards that differ in size between the processes, of which one may hold nothing."""
    import torch
    from torch import nn
    from torch.distributed.fsdp import fully_shard

    from imgrl.training.text.copies import WeightCopy

    torch.distributed.init_process_group("gloo")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1))
    start = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    other = moved(net)
    ema, kept, late = WeightCopy(net), WeightCopy(net), WeightCopy(net)
    fully_shard(net)
    write(net, other)
    ema.follow(net, 0.75)
    late.follow(ema, 0.0)  # of copies, one may have met the sharded model and one not
    kept.renew(late)
    rank = torch.distributed.get_rank()
    for copy in (ema, kept, late):
        state = copy.state_dict(here=rank == 1)
        assert bool(state) == (rank == 1)
        for name, tensor in state.items():
            torch.testing.assert_close(tensor, 0.75 * start[name] + 0.25 * other[name])
    assert sum(t.to_local().numel() for t in ema.tensors.values()) < sum(t.numel() for t in start.values())
    kept.load_state_dict(other)
    assert all(torch.equal(tensor, other[name]) for name, tensor in kept.state_dict().items())
    x = torch.ones(2, 3)
    with kept.applied(net):
        expected = (x @ other["0.weight"].T + other["0.bias"]) @ other["1.weight"].T + other["1.bias"]
        torch.testing.assert_close(net(x), expected)
