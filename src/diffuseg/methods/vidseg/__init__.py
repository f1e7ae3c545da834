"""VidSeg's steps on tensors: a model of the scene, tracks, modulated denoising, differences."""

from diffuseg.methods.vidseg.settings import EMERDIFF, VidSeg

__all__ = ["EMERDIFF", "VidSeg"]
