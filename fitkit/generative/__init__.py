"""Generative models: samplers, and diffusion processes with what is drawn and measured by them."""

from fitkit.generative.sampler import Sampler
from fitkit.generative.score_matching import DenoisingScoreMatching
from fitkit.generative.sde import SDE, VESDE, VPSDE, SubVPSDE

__all__ = ["SDE", "VESDE", "VPSDE", "DenoisingScoreMatching", "Sampler", "SubVPSDE"]
