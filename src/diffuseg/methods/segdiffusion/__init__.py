"""Seg-diffusion's steps on tensors: noise, schedule, masks as pictures, ensembles, losses."""

from diffuseg.methods.segdiffusion.settings import SegDiffusion

__all__ = ["SegDiffusion"]
