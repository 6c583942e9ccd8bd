"""The shared core: weights that stay behind, how far the policy is from them, centring and schedules.

Knows neither images nor text. Nothing here calls backward or owns an optimiser, and no anchor receives a
gradient.
"""

from imgrl.anchor.anchors import Anchor as Anchor
from imgrl.anchor.anchors import Ema as Ema
from imgrl.anchor.anchors import Frozen as Frozen
from imgrl.anchor.anchors import Mixture as Mixture
from imgrl.anchor.anchors import Snapshot as Snapshot
from imgrl.anchor.anchors import Switch as Switch
from imgrl.anchor.anchors import blend as blend
from imgrl.anchor.centering import Gather as Gather
from imgrl.anchor.centering import center as center
from imgrl.anchor.centering import group_mean as group_mean
from imgrl.anchor.centering import group_softmax as group_softmax
from imgrl.anchor.centering import identity as identity
from imgrl.anchor.divergence import categorical_kl as categorical_kl
from imgrl.anchor.divergence import sampled_kl as sampled_kl
from imgrl.anchor.divergence import transition_gap as transition_gap
from imgrl.anchor.divergence import velocity_gap as velocity_gap
from imgrl.anchor.ratio import anchored_softmax as anchored_softmax
from imgrl.anchor.ratio import centered_match as centered_match
from imgrl.anchor.ratio import denoising_gain as denoising_gain
from imgrl.anchor.ratio import log_ratio as log_ratio
from imgrl.anchor.schedule import Constant as Constant
from imgrl.anchor.schedule import Linear as Linear
from imgrl.anchor.schedule import Piecewise as Piecewise
from imgrl.anchor.schedule import Ramp as Ramp
from imgrl.anchor.schedule import Schedule as Schedule
from imgrl.anchor.schedule import adaptive_weight as adaptive_weight
from imgrl.anchor.velocity import VelocityAnchor as VelocityAnchor
