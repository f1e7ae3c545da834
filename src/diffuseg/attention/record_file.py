"""The file of a record: one safetensors file with a header that can be read without this library.

Tensors are named "PASS/LAYER/q", "PASS/LAYER/k", "PASS/LAYER/bias", "PASS/feature/PATH",
"reduced/NUMBER" and "picture"; the metadata holds the header, the layers with their grids, the
timesteps and the reduced maps as JSON.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path

import torch
from torch import Tensor

from diffuseg.attention.captured import CapturedPass, Contents, RecordHeader, ReducedMap
from diffuseg.attention.layers import LayerId
from diffuseg.errors import InputError
from diffuseg.files import atomic_path
from diffuseg.prompts import TokenSpan

FORMAT = "diffuseg-record-1"
_PARTS = {"q": "queries", "k": "keys", "bias": "biases"}


def write_record(path: str | os.PathLike[str], record: Contents) -> None:
    """Write a record; the file appears complete or not at all."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for number, one in enumerate(record.passes):
        for letter, name in _PARTS.items():
            for layer, tensor in getattr(one, name).items():
                tensors[f"{number}/{layer}/{letter}"] = tensor
        for feature, tensor in one.features.items():
            tensors[f"{number}/feature/{feature}"] = tensor
    for number, mean in enumerate(record.reduced):
        tensors[f"reduced/{number}"] = mean.values
    if record.picture is not None:
        tensors["picture"] = record.picture
    metadata = {
        "format": FORMAT,
        "header": asdict(record.header),
        "layers": [asdict(one) | {"hw": record.grids[one.name]} for one in record.layers],
        "timesteps": [one.step for one in record.passes],
        "reduced": [
            {one.name: getattr(mean, one.name) for one in fields(mean) if one.name != "values"}
            for mean in record.reduced
        ],
    }
    texts = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in metadata.items()
    }
    # A stored tensor may be a view of another (heads of one projection, a mask of many layers).
    whole = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    with atomic_path(path) as temporary:
        save_file(whole, temporary, metadata=texts)


def read_record(path: str | os.PathLike[str]) -> Contents:
    """Read a record and check that it is whole.

    Raises:
        InputError: No such file, not a record, of another version, or damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise InputError(
            "a record must be a file that exists", got=str(path), remedy="check the path"
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            texts = file.metadata() or {}
            _check_format(texts, path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        record = _parse(
            {name: json.loads(texts[name]) for name in texts if name != "format"}, tensors
        )
        _check_shapes(record)
    except (SafetensorError, OSError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            "a record must be a whole safetensors file written by AttentionRecord.save",
            got=f"{path}: {error}",
            remedy="record again, or copy the file again if it was cut off",
        ) from error
    return record


def _check_format(texts: Mapping[str, str], path: Path) -> None:
    found = texts.get("format", "")
    if found == FORMAT:
        return
    if found.startswith(FORMAT.rpartition("-")[0]):
        remedy = "install the version of diffuseg that wrote it, or record again"
    else:
        remedy = "pass a file written by AttentionRecord.save"
    raise InputError(
        f"the file must be a record of the format {FORMAT}",
        got=f"{path} of the format {found or 'unknown'}",
        remedy=remedy,
    )


def _parse(metadata: Mapping, tensors: dict[str, Tensor]) -> Contents:
    layers: list[LayerId] = []
    grids: dict[str, tuple[int, int]] = {}
    for entry in metadata["layers"]:
        hw = entry.pop("hw")
        layers.append(LayerId(**entry))
        grids[layers[-1].name] = (hw[0], hw[1])
    passes = [CapturedPass(step) for step in metadata["timesteps"]]
    reduced = [
        ReducedMap(**_tuples(entry), values=tensors.pop(f"reduced/{number}"))
        for number, entry in enumerate(metadata["reduced"])
    ]
    picture = tensors.pop("picture", None)
    for name, tensor in tensors.items():
        number, _, rest = name.partition("/")
        one = passes[int(number)]
        if rest.startswith("feature/"):
            one.features[rest.removeprefix("feature/")] = tensor
        else:
            layer, _, letter = rest.rpartition("/")
            getattr(one, _PARTS[letter])[layer] = tensor
    known = {one.name for one in fields(RecordHeader)}
    header = _tuples({key: value for key, value in metadata["header"].items() if key in known})
    header["tokens"] = tuple(tuple(row) for row in header["tokens"])
    header["spans"] = tuple(TokenSpan(**_tuples(span)) for span in header["spans"])
    return Contents(
        header=RecordHeader(**header),
        layers=layers,
        grids=grids,
        passes=passes,
        reduced=reduced,
        picture=picture,
    )


def _tuples(entry: Mapping[str, object]) -> dict:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}


def _check_shapes(record: Contents) -> None:
    """Every pass has the same layers, and queries fit keys, heads and grid."""
    kinds = {layer.name: layer.kind for layer in record.layers}
    for one in record.passes:
        if not one.queries.keys() == one.keys.keys() == record.passes[0].queries.keys():
            raise ValueError(f"layers are missing at timestep {one.step}")
        for name, q in one.queries.items():
            k = one.keys[name]
            n = record.grids[name][0] * record.grids[name][1]
            fits = q.shape[:2] == k.shape[:2] and q.shape[3:] == k.shape[3:] and q.ndim == 4
            if not fits or (kinds[name] != "temporal" and q.shape[2] != n):
                raise ValueError(f"shapes {tuple(q.shape)} and {tuple(k.shape)} of {name}")
    for mean in record.reduced:
        if mean.values.ndim != 3 or mean.values.shape[1] != mean.hw[0] * mean.hw[1]:
            raise ValueError(f"shape {tuple(mean.values.shape)} of a map on {mean.hw}")
