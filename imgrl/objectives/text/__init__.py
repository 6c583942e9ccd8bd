"""Objectives for language models, one file each. To add one, write a file and join ``TEXT_OBJECTIVES``."""

from typing import Any

from imgrl.objectives.text.adpo import ADPO as ADPO
from imgrl.objectives.text.adpo_losses import adpo_loss as adpo_loss
from imgrl.objectives.text.adpo_losses import pairwise_loss as pairwise_loss
from imgrl.objectives.text.adpo_losses import step_damping as step_damping
from imgrl.objectives.text.adpo_losses import target_loss as target_loss
from imgrl.objectives.text.adpo_targets import Target as Target
from imgrl.objectives.text.asft import ASFT as ASFT
from imgrl.objectives.text.asft import SFTKL as SFTKL
from imgrl.objectives.text.base import TextBatch as TextBatch
from imgrl.objectives.text.base import TextLoss as TextLoss
from imgrl.objectives.text.base import TextObjective as TextObjective
from imgrl.objectives.text.base import reduce as reduce
from imgrl.objectives.text.dpo import DPO as DPO
from imgrl.objectives.text.f_sft import FSFT as FSFT
from imgrl.objectives.text.f_sft import f_sft_loss as f_sft_loss
from imgrl.objectives.text.f_sft import logits_as_q_loss as logits_as_q_loss
from imgrl.objectives.text.grpo import GRPO as GRPO
from imgrl.objectives.text.kde import kde_scores as kde_scores
from imgrl.objectives.text.kdrl import KDRL as KDRL
from imgrl.objectives.text.metadistill import MetaDistill as MetaDistill
from imgrl.objectives.text.metadistill import meta_distill_loss as meta_distill_loss
from imgrl.objectives.text.metadistill import meta_target as meta_target
from imgrl.objectives.text.plackett_luce import plackett_luce_loss as plackett_luce_loss
from imgrl.objectives.text.remix import ReMix as ReMix
from imgrl.objectives.text.sft import DFT as DFT
from imgrl.objectives.text.sft import SFT as SFT
from imgrl.objectives.text.sft import sft_loss as sft_loss
from imgrl.objectives.text.spine import SPINE as SPINE
from imgrl.objectives.text.spine import TTRL as TTRL
from imgrl.objectives.text.tokens import head_statistics as head_statistics
from imgrl.objectives.text.tokens import token_entropy as token_entropy
from imgrl.objectives.text.tokens import token_kl as token_kl
from imgrl.objectives.text.tokens import token_log_probs as token_log_probs
from imgrl.objectives.text.tokens import token_statistics as token_statistics
from imgrl.objectives.text.trrd import TRRD as TRRD
from imgrl.objectives.text.votes import majority as majority
from imgrl.objectives.text.votes import vote_rewards as vote_rewards

#: Name in a recipe -> objective.
TEXT_OBJECTIVES: dict[str, type[Any]] = {
    kind.name: kind
    for kind in (
        SFT,
        DFT,
        ASFT,
        SFTKL,
        FSFT,
        GRPO,
        TRRD,
        KDRL,
        ReMix,
        TTRL,
        SPINE,
        MetaDistill,
        ADPO,
        DPO,
    )
}
