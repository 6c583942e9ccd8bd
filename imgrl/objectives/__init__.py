"""Training objectives: pure functions of tensors, each with the frozen dataclass that is its config."""

from imgrl.objectives.image import AWM as AWM
from imgrl.objectives.image import CRD as CRD
from imgrl.objectives.image import DGPO as DGPO
from imgrl.objectives.image import GRPO as GRPO
from imgrl.objectives.image import NFT as NFT
