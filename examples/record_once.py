"""Record one image, save the record, and try settings without the model."""

import diffuseg as ds
from diffuseg.world import CLASSES, Scenes


def main() -> None:
    scene = Scenes("val", seed=5)[2]
    find = ds.build_segmenter("mini", classes=scene.names)
    find.capture(scene.image, everything=True).save("scene.safetensors")

    record = ds.AttentionRecord.load("scene.safetensors")
    truth = {name: scene.labels == CLASSES.index(name) for name in scene.names}
    for refine in (0, 1, 2):
        seg = ds.Attend(refine=refine)(record)
        right = sum(int((seg[name] & truth[name]).sum()) for name in scene.names)
        print(f"refine={refine}: {right / scene.labels.size:.1%} of the pixels are right")


if __name__ == "__main__":
    main()
