"""Drawings of results, for files (`pictures`) and for the terminal (`terminal`)."""

from diffuseg.render.pictures import heat_colors, heatmap, overlay, side_by_side, strip

__all__ = ["heat_colors", "heatmap", "overlay", "side_by_side", "strip"]
