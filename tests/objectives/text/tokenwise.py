"""A policy over four tokens at each of five positions, small enough to enumerate, and batches made from it."""

import torch

from imgrl.anchor import categorical_kl
from imgrl.objectives.text import TextBatch

N, T, V = 6, 5, 4


def drawn(seed=0, *, spread=1.0):
    """Logits, tokens, ragged mask and advantages of six sequences, in float64."""
    generator = torch.Generator().manual_seed(seed)
    logits = (spread * torch.randn(N, T, V, generator=generator, dtype=torch.float64)).requires_grad_()
    ids = torch.randint(V, (N, T), generator=generator)
    lengths = torch.tensor([5, 4, 3, 5, 2, 1])
    mask = (torch.arange(T) < lengths[:, None]).double()
    advantage = torch.randn(N, generator=generator, dtype=torch.float64)
    return logits, ids, mask, advantage


def chosen(logits, ids):
    return logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]


def moved(logits, amount, seed=1):
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed), dtype=logits.dtype)
    return (logits + amount * noise).detach()


def batch_of(logits, ids, mask, advantage, *, old=None, base=None, previous=None, **more):
    """Every field an online objective may read, from logits of the policies."""
    old = logits.detach() if old is None else old
    base = moved(logits, 0.5, 7) if base is None else base
    previous = moved(logits, 0.3, 8) if previous is None else previous
    log_prob = chosen(logits, ids)
    fields = {
        "old": chosen(old, ids),
        "current": chosen(logits.detach(), ids),
        "anchor": chosen(base, ids),
        "teacher": chosen(base, ids),
        "entropy": -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1),
        "reverse_kl": categorical_kl(logits, base, direction="reverse"),
        "forward_kl": categorical_kl(logits, base, direction="forward"),
        "previous_kl": categorical_kl(logits, previous, direction="reverse"),
        "advantage": advantage,
        "group": torch.arange(N) // 2,
    }
    return TextBatch(log_prob=log_prob, mask=mask, **(fields | more))


def gradient(objective, logits, batch):
    from imgrl.objectives.text import reduce

    loss = objective.loss(batch).loss
    total = reduce(loss, batch.mask, how=objective.reduction)
    return torch.autograd.grad(total, logits, retain_graph=True, allow_unused=True)[0]
