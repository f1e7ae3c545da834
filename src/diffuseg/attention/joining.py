"""Records of parts of a batch made into the record of the whole."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from diffuseg.attention.attention_record import AttentionRecord
from diffuseg.attention.captured import CapturedPass, RecordHeader
from diffuseg.errors import InputError


def join_rows(parts: Sequence[AttentionRecord]) -> AttentionRecord:
    """Return the record of the rows of several records, in their order.

    The parts give up their tensors one by one, so that not all of them are there twice.

    Raises:
        InputError: They are not of the same layers and timesteps, or hold means or features taken
            while recording.

    Example:
        >>> from diffuseg.attention.captured import Contents
        >>> one = AttentionRecord(Contents())
        >>> join_rows([one]) is one
        True
    """
    first, *others = parts
    if not others:
        return first
    if any(not _alike(first, one) for one in others):
        raise InputError(
            "records can be joined if they have the same layers and timesteps, kept as they came",
            got=", ".join(repr(one) for one in parts),
            remedy="record them alike, without reduce= and features=",
        )
    batches = [part.batch for part in parts]
    headers = [part.header for part in parts]
    passes: list[CapturedPass] = []
    for together in zip(*(part._contents.passes for part in parts), strict=True):
        kinds = zip(*map(_tensors, together), strict=True)
        passes.append(CapturedPass(together[0].step, *map(_joined, kinds)))
    header = _header(headers, batches)
    return AttentionRecord(replace(first._contents, header=header, passes=passes))


def _alike(one: AttentionRecord, other: AttentionRecord) -> bool:
    plain = not any(part.reduced for part in (one, other))
    same = one.layers == other.layers and one.timesteps == other.timesteps
    return plain and same and one._contents.grids == other._contents.grids


def _tensors(one: CapturedPass) -> tuple[dict[str, Tensor], ...]:
    return one.queries, one.keys, one.biases, one.features


def _joined(dicts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([one.pop(name) for one in dicts]) for name in list(dicts[0])}


def _header(headers: Sequence[RecordHeader], batches: Sequence[int]) -> RecordHeader:
    """The header of all rows, one prompt a row."""
    rows = [
        header.of_rows(range(batch), batch) for header, batch in zip(headers, batches, strict=True)
    ]
    spans = []
    start = 0
    for header, batch in zip(rows, batches, strict=True):
        spans += [replace(span, row=span.row + start) for span in header.spans]
        start += batch
    return replace(
        rows[0],
        prompts=tuple(prompt for header in rows for prompt in header.prompts),
        tokens=tuple(tokens for header in rows for tokens in header.tokens),
        spans=tuple(spans),
    )
