"""The script that trains `tiny`, with a model of next to no size: a hundred steps take a second."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent.parent / "training" / "train_tiny.py"
SIZES = {"n_embd": 8, "n_inner": 8, "n_layer": 1}


def small_script():
    """The script's module; `.CONFIG` is a run of 200 steps, which saves its state after 100 and 200."""
    spec = importlib.util.spec_from_file_location("train_small", SCRIPT)
    script = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    full_size = script.GPT2Config
    script.GPT2Config = lambda **options: full_size(**{**options, **SIZES})
    script.CONFIG = script.Config(steps=200, batch=4, context=24, warmup=20, story_rows=6, widen=60, save_every=50)
    return script
