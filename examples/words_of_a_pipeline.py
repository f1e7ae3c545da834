"""Where the words of a prompt are while a diffusers pipeline draws the picture.

The first argument is any Stable Diffusion, by folder or hub id; without one, the embedded model.
"""

import sys

import torch

import diffuseg as ds
from diffuseg import render

PROMPT = "a red car on grass"


def main() -> None:
    from diffusers import StableDiffusionPipeline  # here, because it takes seconds to import

    folder = sys.argv[1] if len(sys.argv) > 1 else ds.list_models()[0].source
    pipe = StableDiffusionPipeline.from_pretrained(folder).to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    with ds.record(pipe, kinds="cross", half="cond") as record:
        picture = pipe(PROMPT, num_inference_steps=10, generator=generator).images[0]
    print(record)
    picture.save("picture.png")
    for word in ("car", "grass"):
        where = record.cross(word, hw=(64, 64))[0]
        render.heatmap(picture, where.numpy()).save(f"{word}.png")


if __name__ == "__main__":
    main()
