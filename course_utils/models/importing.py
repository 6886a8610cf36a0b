"""The libraries behind a model, imported in less time than Python takes by itself."""

from __future__ import annotations

import gc
import importlib
import sys


def import_libraries() -> None:
    """Import torch and TransformerLens, and spare Python the search for garbage in what they make.

    Python looks through all objects each time they have grown by a quarter, and again when it ends. These libraries
    make hundreds of thousands, which stay until then: without it the first plot comes a sixth sooner (measured). What
    else exists at that moment is never looked through again either, only freed when nobody refers to it; so this does
    nothing if transformers is here already, with models perhaps, or if somebody has switched the search off.
    """
    if "transformers" in sys.modules or not gc.isenabled():
        return
    gc.disable()
    try:
        importlib.import_module("transformer_lens.model_bridge")
        gc.freeze()
    finally:
        gc.enable()
