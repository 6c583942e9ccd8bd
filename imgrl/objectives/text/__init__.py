"""Objectives for language models, one file each. To add one, write a file and join ``TEXT_OBJECTIVES``."""

from imgrl.objectives.text.base import TextBatch as TextBatch
from imgrl.objectives.text.base import TextLoss as TextLoss
from imgrl.objectives.text.base import TextObjective as TextObjective
from imgrl.objectives.text.base import reduce as reduce
