"""Flow matching in one convention: the only place that says where noise is and what velocity means.

Symbols, used throughout the package:

=========  ==================================================================
``sigma``  noise level in [0, 1]; 1 is pure noise, 0 is data (diffusers' side)
``x``      state at ``sigma``: ``(1 - sigma) clean + sigma noise``
``v``      velocity ``noise - clean`` (the derivative of ``x`` by ``sigma``)
``n``      samples, first axis; ``*d`` every other axis
=========  ==================================================================

A scheduler's time is ``1000 sigma``. Sampling walks from sigma 1 down to 0.
"""

from imgrl.flow.conventions import add_noise as add_noise
from imgrl.flow.conventions import full_precision as full_precision
from imgrl.flow.conventions import guided as guided
from imgrl.flow.conventions import mean_dims as mean_dims
from imgrl.flow.conventions import predict_clean as predict_clean
from imgrl.flow.conventions import predict_noise as predict_noise
from imgrl.flow.conventions import shift_sigma as shift_sigma
from imgrl.flow.conventions import sigma_schedule as sigma_schedule
from imgrl.flow.conventions import velocity_target as velocity_target
from imgrl.flow.solvers import dpm2_step as dpm2_step
from imgrl.flow.solvers import euler_step as euler_step
from imgrl.flow.solvers import sample_ode as sample_ode
from imgrl.flow.stochastic import StochasticStep as StochasticStep
from imgrl.flow.stochastic import cps_step as cps_step
from imgrl.flow.stochastic import dance_step as dance_step
from imgrl.flow.stochastic import sde_step as sde_step
from imgrl.flow.times import TimeSampler as TimeSampler
from imgrl.flow.trajectory import Path as Path
from imgrl.flow.trajectory import StochasticSampler as StochasticSampler
from imgrl.flow.trajectory import sample_path as sample_path
