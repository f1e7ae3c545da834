"""diffuseg: text-to-image diffusion models as segmenters."""
