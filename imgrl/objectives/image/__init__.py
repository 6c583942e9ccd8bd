"""Objectives for flow models, one file each. To add one, write a file and join ``OBJECTIVES``."""

from imgrl.objectives.image.base import Batch as Batch
from imgrl.objectives.image.base import LossOutput as LossOutput
from imgrl.objectives.image.base import Objective as Objective
from imgrl.objectives.image.crd import CRD as CRD
from imgrl.objectives.image.crd import crd_loss as crd_loss
from imgrl.objectives.image.crd import crd_target as crd_target
from imgrl.objectives.image.nft import NFT as NFT
from imgrl.objectives.image.nft import nft_loss as nft_loss

#: Name in a recipe -> objective.
OBJECTIVES: dict[str, type[CRD] | type[NFT]] = {"crd": CRD, "nft": NFT}
