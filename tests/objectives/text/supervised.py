"""Logits of a live policy, its base and demonstrated tokens, and the loss an objective makes of them."""

import torch

from imgrl.objectives.text import TextBatch, reduce, token_statistics

TOKEN_FIELDS = {"forward_kl", "reverse_kl", "entropy"}


def problem(seed=0, n=3, t=4, v=7):
    generator = torch.Generator().manual_seed(seed)
    live, base = 2 * torch.randn(2, n, t, v, generator=generator, dtype=torch.float64)
    ids = torch.randint(v, (n, t), generator=generator)
    mask = torch.ones(n, t, dtype=torch.float64)
    mask[0, 2:] = mask[1, 0] = 0  # unequal lengths; a sequence whose loss starts late
    return live.requires_grad_(), base, ids, mask


def batch_of(objective, live, base, ids, mask):
    want = {"log_prob"} | (TOKEN_FIELDS & objective.needs)
    values = token_statistics(live, ids, want=want, anchor_logits=base, mask=mask)
    if "anchor" in objective.needs:
        values["anchor"] = token_statistics(base, ids, want={"log_prob"}, mask=mask)["log_prob"]
    return TextBatch(mask=mask, **values)


def scalar_loss(objective, live, base, ids, mask, denominator=None):
    loss = objective.loss(batch_of(objective, live, base, ids, mask)).loss
    if loss.ndim == 1:
        return loss.sum() / (len(loss) if denominator is None else denominator)
    return reduce(loss, mask, how=objective.reduction, denominator=denominator)


def gradient(objective, live, base, ids, mask, denominator=None):
    (result,) = torch.autograd.grad(scalar_loss(objective, live, base, ids, mask, denominator), live)
    return result
