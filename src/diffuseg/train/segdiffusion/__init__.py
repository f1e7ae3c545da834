"""Seg-diffusion's training: a text-to-image model learns to denoise the masks of named classes."""
