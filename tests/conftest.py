"""What holds for every test: no network, no telemetry, one thread (workers share the cores)."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.pop("DIFFUSEG_MODEL", None)

import torch

torch.set_num_threads(1)
