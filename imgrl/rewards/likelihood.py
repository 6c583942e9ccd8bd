"""How likely EasyOCR's recogniser finds the wanted text: a reward between its whole letters.

Reading gives the same score to an almost closed C and to a good one, and to a G that is read as C in every image of
a group, so that nothing can be learnt. The recogniser's own probability of the text tells them apart (connectionist
temporal classification, Graves et al. 2006, equation 8).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["log_likelihood"]


def log_likelihood(crops: Sequence[Tensor], symbols: Sequence[str], target: str) -> float:
    """Return the log-probability that the crops, read in their order, say the target.

    Case does not count, and spaces may come anywhere.

    Args:
        crops: log-probabilities [steps, 1 + symbols] of each crop, blank first; none gives -inf.
        symbols: the recogniser's, without the blank.
        target: in lower case, without spaces, not empty.
    """
    if not crops:
        return -float("inf")
    steps = torch.cat(list(crops))
    wanted = sorted(set(target))
    columns = [[0, *(1 + place for place, symbol in enumerate(symbols) if symbol == " ")]]
    columns += [
        [1 + place for place, symbol in enumerate(symbols) if symbol.lower() == one] for one in wanted
    ]
    if not all(columns):  # a character that the recogniser does not know
        return -float("inf")
    merged = torch.stack([steps[:, chosen].logsumexp(-1) for chosen in columns], dim=-1)
    labels = torch.tensor([[1 + wanted.index(one) for one in target]])
    loss = F.ctc_loss(
        merged[:, None], labels, torch.tensor([len(steps)]), torch.tensor([len(target)]), reduction="none"
    )
    return -float(loss)
