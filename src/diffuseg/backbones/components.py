"""Loading one part of a model, through diffusers' and transformers' own loaders."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import nn

from diffuseg.backbones.folder import bad_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Part = TypeVar("Part", bound=nn.Module)


def load_component(
    kind: type[Part],
    path: Path,
    *,
    variant: str | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Part:
    """Load a network from its folder, frozen.

    Raises:
        WeightsError: The weights do not fit the configuration.
    """
    from diffusers.models.modeling_utils import ModelMixin

    # The two libraries name this argument differently.
    precision = "torch_dtype" if issubclass(kind, ModelMixin) else "dtype"
    with _quiet():
        try:
            loaded = cast(type[ModelMixin], kind).from_pretrained(
                path,
                variant=variant,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **{precision: dtype},
            )
        except Exception as error:
            # Whatever a loader makes of unfit files (a dozen kinds of exception), the files are it.
            raise bad_folder(path, f"cannot be loaded: {_brief(error)}") from error
    model, info = cast(tuple[Part, Mapping[str, Collection[str]]], loaded)
    missing = sorted(info["missing_keys"])
    if missing:
        some = ", ".join(missing[:3])
        raise bad_folder(path, f"lacks {len(missing)} tensors of the model, such as {some}")
    return model.to(device).eval().requires_grad_(False)


def load_tokenizer(path: Path) -> "PreTrainedTokenizerBase":
    """Load a CLIP tokenizer that knows the characters of every token.

    Raises:
        WeightsError: The files are not a tokenizer's.
    """
    import transformers

    # Before transformers 5 the plain name was the tokenizer that keeps no offsets.
    kind = getattr(transformers, "CLIPTokenizerFast", transformers.CLIPTokenizer)
    with _quiet():
        try:
            return kind.from_pretrained(path, local_files_only=True)
        except Exception as error:
            # The tokenizers library raises bare Exception.
            raise bad_folder(path, f"cannot be loaded: {_brief(error)}") from error


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no advice from the libraries while parts are loaded."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    levels = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(levels[0])
        transformers_logging.set_verbosity(levels[1])
        if shown:
            transformers_logging.enable_progress_bar()
