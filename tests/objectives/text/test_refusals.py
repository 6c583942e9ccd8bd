"""What another model says of a loss token must be a number: an anchor that overflowed would hold nobody."""

from dataclasses import replace

import pytest
import torch
from tokenwise import batch_of, drawn

from imgrl.anchor import Constant
from imgrl.objectives.text import (
    ADPO,
    ASFT,
    DPO,
    FSFT,
    GRPO,
    KDRL,
    SFTKL,
    SPINE,
    TRRD,
    TTRL,
    MetaDistill,
    ReMix,
)

READ = [
    (GRPO(kl_weight=0.1), "anchor"),
    (GRPO(kl_weight=0.1, kl="exact"), "reverse_kl"),
    (TRRD(), "teacher"),
    (TRRD(kl_weight=0.1), "anchor"),
    (KDRL(), "teacher"),
    (TTRL(), "reverse_kl"),
    (SPINE(), "reverse_kl"),
    (ReMix(), "reverse_kl"),
    (ReMix(lam=Constant(value=0.5)), "previous_kl"),
    (MetaDistill(), "target_kl"),
    (ASFT(), "forward_kl"),
    (SFTKL(kl_direction="reverse"), "reverse_kl"),
    (FSFT(), "anchor"),
    (ADPO(anchor="anchor"), "anchor"),
    (DPO(), "anchor"),
]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize(("objective", "field"), READ, ids=lambda x: getattr(x, "name", x))
def test_a_number_that_is_none_is_refused_on_a_loss_token_only_with_its_row(objective, field, value):
    logits, ids, mask, advantage = drawn(2)
    batch = batch_of(logits, ids, mask, advantage, reward=advantage)
    batch = replace(batch, target_kl=batch.forward_kl)
    broken = getattr(batch, field).detach().clone()
    assert mask[4, 1] == 1 and mask[4, 2] == 0
    broken[4, 2] = value
    plain = objective.loss(batch).loss
    torch.testing.assert_close(objective.loss(replace(batch, **{field: broken})).loss, plain)
    broken[4, 1] = value
    with pytest.raises(ValueError, match=rf"TextBatch.{field}.*rows \[4\]") as error:
        objective.loss(replace(batch, **{field: broken}))
    assert str(error.value).count(". ") == 0 and str(error.value).endswith(".")
