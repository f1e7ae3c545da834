"""Attention of a U-Net: where it is, reading it (`record`), changing it (`intervene`)."""

from diffuseg.attention.attention_record import AttentionRecord
from diffuseg.attention.captured import RecordHeader
from diffuseg.attention.heads import HeadDivergence, head_divergence
from diffuseg.attention.intervention import AddToOutput, InjectQK, ReplaceOutput, intervene
from diffuseg.attention.joining import join_rows
from diffuseg.attention.layers import LayerId, layers_of
from diffuseg.attention.products import spread
from diffuseg.attention.recorder import Recorder
from diffuseg.attention.recording import estimate_bytes, record
from diffuseg.attention.reduce import HeadMean, TokenColumns

__all__ = [
    "AddToOutput",
    "AttentionRecord",
    "HeadDivergence",
    "HeadMean",
    "InjectQK",
    "LayerId",
    "RecordHeader",
    "Recorder",
    "ReplaceOutput",
    "TokenColumns",
    "estimate_bytes",
    "head_divergence",
    "intervene",
    "join_rows",
    "layers_of",
    "record",
    "spread",
]
