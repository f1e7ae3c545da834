"""Seg-diffusion's glue: a text-to-image model made one that denoises masks."""
