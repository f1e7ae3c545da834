"""The recipe of the embedded model `mini-seg`: `mini`, fine-tuned on Scenes in two stages.

Crops at the size things have in a scene, then whole scenes. It predicts velocities, which `mini`
does not: noise is no use where masks are to be had in a step. Two kinds of things are held out, car
and fish: no scene that shows one is ever drawn. Layers that read prompts stay as they are. Words
that are never learned are all but forgotten all the same, so that `mini` itself is asked for those,
see docs/methods/segdiffusion.md.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from diffuseg.backbones.sd import StableDiffusion
from diffuseg.train.segdiffusion.pictures import LabelledPictures
from diffuseg.train.segdiffusion.recipe import SegRecipe
from diffuseg.train.segdiffusion.running import Meter, Running, silent
from diffuseg.train.segdiffusion.state import RunFacts
from diffuseg.train.segdiffusion.trainer import fine_tune

BASE = "mini"

SCENES, STREAM = 1500, 5
"""How many training scenes are learned from, and of which stream."""

UNSEEN = ("car", "fish")
"""Classes never shown: a vehicle and an animal."""

STAGES = (
    SegRecipe(
        steps=2000,
        images=4,
        weights="lora",
        convolutions=True,
        text="frozen",
        prediction="v_prediction",
        learning_rate=1e-3,
        warmup=50,
        final=0.1,
        ema=0.995,
        timestep_power=0.5,
        crop=128,
        zoom=(0.7, 1.4),
        negatives=0.3,
        without=UNSEEN,
        precision="fp32",
    ),
    SegRecipe(
        steps=450,
        images=2,
        weights="lora",
        convolutions=True,
        text="frozen",
        prediction="v_prediction",
        learning_rate=3e-4,
        warmup=20,
        final=0.1,
        ema=0.99,
        timestep_power=0.5,
        crop=256,
        zoom=(0.8, 1.25),
        negatives=0.3,
        without=UNSEEN,
        precision="fp32",
        seed=1,
    ),
)

PRESET: Mapping[str, object] = {
    "background": "none",
    "steps": 1,
    "runs": 4,
    "attention": 0.3,
    "attention_new": 0.8,
}
"""Written into the folder: every pixel of a scene has a class. Chosen on 30 validation scenes."""


def train_mini_seg(
    load: Callable[[], StableDiffusion],
    pictures: LabelledPictures,
    out: Path,
    work: Path,
    *,
    running: Running | None = None,
    meter: Meter = silent,
) -> RunFacts:
    """Run both stages, or go on with them.

    Args:
        load: Loads `BASE` anew; a stage changes it.
        pictures: The scenes.
        out: The folder to write.
        work: Where stages are kept.
        running: What changes no number.
        meter: Opens progress bars.

    Returns:
        What is known of the last stage that was begun.
    """
    running, start = replace(running or Running(), preset=PRESET), None
    facts: RunFacts | None = None
    for number, recipe in enumerate(STAGES, start=1):
        folder, last = work / f"stage-{number}", number == len(STAGES)
        target = out if last else work / f"stage-{number}-model"
        facts = fine_tune(
            load(), pictures, target, folder, recipe, start=start, running=running, meter=meter
        )
        if facts.step < recipe.steps:  # time was up
            break
        start = folder
    assert facts is not None  # there are stages
    return facts
