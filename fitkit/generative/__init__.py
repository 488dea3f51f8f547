"""Generative models: SDEs, denoising score matching, and the protocol of samplers."""

from fitkit.generative.sampler import Sampler
from fitkit.generative.score_matching import DenoisingScoreMatching
from fitkit.generative.sde import SDE, VESDE, VPSDE, SubVPSDE

__all__ = ["SDE", "VESDE", "VPSDE", "DenoisingScoreMatching", "Sampler", "SubVPSDE"]
