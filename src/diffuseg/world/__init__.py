"""The procedural world: scenes and clips with exact masks, captions and class names."""

from diffuseg.world.captions import VOCABULARY, caption_things
from diffuseg.world.composition import HELD_OUT_PAIRS
from diffuseg.world.painting import CLASSES
from diffuseg.world.scenes import Scene, Scenes, Thing
from diffuseg.world.shapes import THINGS
from diffuseg.world.sprites import COLORS
from diffuseg.world.textures import STUFF
from diffuseg.world.videos import Clip, Clips, Track

__all__ = [
    "CLASSES",
    "COLORS",
    "HELD_OUT_PAIRS",
    "STUFF",
    "THINGS",
    "VOCABULARY",
    "Clip",
    "Clips",
    "Scene",
    "Scenes",
    "Thing",
    "Track",
    "caption_things",
]
