"""Settings that suit the embedded miniature, by method; written into its folder.

Values were chosen by measuring, as the texts behind them say; they are no part of its training.
"""

_FINEST = ["up_blocks.3.*"]

PRESET: dict[str, dict[str, object]] = {
    "attend": {"timestep": 50, "levels": [1, 2], "normalise": "minmax", "self_layers": _FINEST},
    "diffsegmenter": {
        "template": "a photo of {}",
        "timesteps": [50],
        "levels": [1],
        "weights": [1.0],
        "self_layers": _FINEST,
        "power": 2,
        "emphasis": 1.0,
        "edges": 32,
        "background": "none",
    },
    "iseg": {
        "template": "a photo of {}",
        "timestep": 100,
        "gamma": 1.0,
        "levels": [1],
        "weights": [1.0],
        "heads": "all",
        "self_layers": _FINEST,
        "self_heads": "all",
        "clusters": 0,
        "ent": 0.06,
        "iterations": 1,
        "edges": 32,
        "background": "none",
    },
    "interactive": {"spread": "likeness"},
    "class-filter": {"share": 0.4, "caption_share": 0.1},
    "diffseg": {
        "timestep": 300,
        "weights": [0.4, 0.4, 0.2, 0.0],
        "tau": 0.5,
        "assign": "nearest",
    },
    "kmeans": {"k": 4},
    "ovdiff": {
        "number": 8,
        "template": "a {}",
        "guidance": 5.0,
        "steps": 12,
        "proposals": "none",
        "extractors": ["sd"],
        "layers": ["up_blocks.3.*"],
        "vit_zoom": 1.0,
        "timestep": 50,
        "parts": 8,
        "background": "none",
        "cut_size": 256,
        "side": 256,
        "crops": [256],
        "stride": 128,
        "whole": False,
        "pamr": 10,
    },
    "semantic-diffseg": {"cross_layers": ["up_blocks.2.*", "up_blocks.3.*"]},
    "vidseg": {
        "side": 256,
        "feature_blocks": [8, 9],
        "join": "concat",
        "naming": "mask",
        "track_block": 9,
        "modulate": False,
        "modulate_step": 24,
        "guidance": 1.0,
        "shares": True,
        "edges": 24,
    },
    "emerdiff": {"side": 256, "feature_blocks": [9], "modulate_block": 9},
}
"""Settings written into the exported folder, by method.

Where its words find their pixels best: chosen on 12 to 32 validation scenes among timesteps,
levels, strengths and numbers of refinements. Every pixel of a scene has a class, so none of these
looks for a background. For `diffseg`, the best of two timesteps, four weightings and three
thresholds on 24. For `kmeans`, the mean number of classes of a scene. For `vidseg` and `emerdiff`
on two to four clips: the paper's blocks have cells of 16 and 32 pixels here.
"""

VIT_PRESET: dict[str, dict[str, object]] = {"dinoseg": {"tau": "auto", "assign": "nearest"}}
"""The same for methods that run on the ViT: the paper's threshold leaves one segment."""
