"""Objectives for flow models, one file each. To add one, write a file and join ``OBJECTIVES``."""

from imgrl.objectives.image.awm import AWM as AWM
from imgrl.objectives.image.awm import matching_log_prob as matching_log_prob
from imgrl.objectives.image.base import Batch as Batch
from imgrl.objectives.image.base import LossOutput as LossOutput
from imgrl.objectives.image.base import Objective as Objective
from imgrl.objectives.image.crd import CRD as CRD
from imgrl.objectives.image.crd import crd_loss as crd_loss
from imgrl.objectives.image.crd import crd_target as crd_target
from imgrl.objectives.image.dgpo import DGPO as DGPO
from imgrl.objectives.image.dgpo import dgpo_loss as dgpo_loss
from imgrl.objectives.image.grpo import GRPO as GRPO
from imgrl.objectives.image.nft import NFT as NFT
from imgrl.objectives.image.nft import nft_loss as nft_loss

AnyObjective = CRD | NFT | AWM | DGPO | GRPO

#: Name in a recipe -> objective.
OBJECTIVES: dict[str, type[AnyObjective]] = {kind.name: kind for kind in (CRD, NFT, AWM, DGPO, GRPO)}
