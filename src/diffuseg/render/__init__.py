"""Drawings of results, for files (`pictures`) and for the terminal (`terminal`)."""

from diffuseg.render.pictures import cutout, heat_colors, heatmap, overlay, side_by_side, strip

__all__ = ["cutout", "heat_colors", "heatmap", "overlay", "side_by_side", "strip"]
