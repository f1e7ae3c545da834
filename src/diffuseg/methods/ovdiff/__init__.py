"""OVDiff's steps on tensors: attribution, masks, prototypes, matching, windows."""

from diffuseg.methods.ovdiff.settings import OVDiff

__all__ = ["OVDiff"]
