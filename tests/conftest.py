"""What holds for every test: no network, no telemetry, one thread (workers share the cores)."""

import logging
import os
from collections.abc import Iterator

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.pop("DIFFUSEG_MODEL", None)

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """What the command line does to the logger ends with the test that ran it."""
    logger = logging.getLogger("diffuseg")
    held = logger.handlers[:], logger.level, logger.propagate
    yield
    handlers, level, logger.propagate = held
    logger.handlers[:] = handlers
    logger.setLevel(level)
