"""Models from the Hugging Face hub or its local cache, through safetensors only."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from course_utils.house import DamagedModelFile, ModelUnavailable, NotForThisModel, first_line, read_json
from course_utils.models.folders import explain_disk_errors, quiet

HUB_IDS = {"gpt2-small": "gpt2"}  # our names for models on the hub
NEED_MB = 600  # what the message for a full disk names; GPT-2 small takes 550


@lru_cache(maxsize=1)
def known_names() -> dict[str, str]:
    """Every name that TransformerLens knows, each with its hub id."""
    from transformer_lens.supported_models import MODEL_ALIASES, OFFICIAL_MODEL_NAMES
    from transformer_lens.tools.model_registry.api import get_supported_models

    ids = [*OFFICIAL_MODEL_NAMES, *(entry.model_id for entry in get_supported_models())]
    aliases = {alias: official for official, names in MODEL_ALIASES.items() for alias in names}
    return aliases | {name: name for name in ids}


@lru_cache(maxsize=1)
def _architectures() -> dict[str, str]:
    """The architecture of each model that TransformerLens lists, by its hub id."""
    from transformer_lens.tools.model_registry.api import get_supported_models

    return {entry.model_id: entry.architecture_id for entry in get_supported_models()}


def check_causal_architecture(name: str) -> None:
    """Raise NotForThisModel if the name is known not to be a causal language model's, or needs code of its own.

    A translator, an encoder or an image model predicts no next token; and code from the hub is never run.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    architecture = _architectures().get(hub_id(name))
    if architecture and architecture not in set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()):
        raise NotForThisModel(
            f"{name} is a {architecture}: it is not one of the causal language models that the package transformers "
            "has the code for, and this course needs one (code from the hub is not run)")


def hub_id(name: str) -> str:
    """The Hugging Face hub's name of a model."""
    return HUB_IDS.get(name) or known_names()[name]


def in_cache(repo: str) -> bool:
    """Whether the local Hugging Face cache has this model's config, a tokenizer, and all its safetensors weights."""
    return not missing(repo)


def missing(repo: str) -> list[str]:
    """What the local Hugging Face cache lacks of all that `in_cache` names."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo, "config.json")
    if not isinstance(config, str):
        return ["config.json"]
    folder, parts = Path(config).parent, ["model.safetensors"]
    if (index := folder / "model.safetensors.index.json").exists():
        try:
            parts = [str(part) for part in read_json(index)["weight_map"].values()]
        except (ValueError, KeyError, TypeError, AttributeError):
            parts = [f"{index.name} (damaged)"]
    tokenizer = any(path for pattern in ("tokenizer.*", "vocab.*", "*.model") for path in folder.glob(pattern))
    return ["a tokenizer"] * (not tokenizer) + sorted({part for part in parts if not (folder / part).is_file()})


def load(name: str, works_now: str = "") -> tuple[Any, Any]:
    """A model and tokenizer from the local Hugging Face cache, downloaded first if need be."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    repo = hub_id(name)
    if not in_cache(repo):
        fetch(name, works_now)
    try:
        tokenizer = AutoTokenizer.from_pretrained(repo, add_bos_token=True, local_files_only=True)
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(
                repo, dtype=torch.float32, use_safetensors=True, local_files_only=True
            )
    except ValueError as error:
        raise NotForThisModel(
            f"{name}: transformers finds no causal language model in {repo}: {first_line(error)}"
        ) from error
    except (OSError, SafetensorError) as error:
        raise DamagedModelFile(
            f"{name}: the local Hugging Face cache of {repo} is incomplete or damaged: {first_line(error)}\n"
            f"  Delete its folder models--{repo.replace('/', '--')} and run: "
            f"faithful-circuits fetch {name}"
        ) from error
    return model, tokenizer


def fetch(name: str, works_now: str = "") -> None:
    """Download config, tokenizer and safetensors weights into the Hugging Face cache.

    `works_now` is added to the ModelUnavailable raised when the hub cannot be reached, or lacks something needed.
    """
    from huggingface_hub import constants, snapshot_download

    repo, cache = hub_id(name), Path(constants.HF_HUB_CACHE)
    try:
        with explain_disk_errors(cache, NEED_MB, "HF_HOME"):
            snapshot_download(repo, allow_patterns=["*.json", "*.txt", "*.model", "*.safetensors"])
    except (OSError, ValueError) as error:
        raise ModelUnavailable(
            f"{name} is not on this machine and could not be downloaded.\n"
            f"  needed:  config, tokenizer and weights of the model {repo}\n"
            f"  tried:   the local Hugging Face cache {cache}: not there\n"
            f"           the Hugging Face hub: {first_line(error)}\n{works_now}"
            f"  with network, once: faithful-circuits fetch {name}"
        ) from error
    if lacking := missing(repo):
        raise ModelUnavailable(
            f"{name} cannot be loaded: not all that is needed was there to be downloaded.\n"
            f"  missing: {', '.join(lacking)[:160]} in {repo}\n"
            "  Weights are read from safetensors alone: a pickle (pytorch_model.bin, for one) can run any code.\n"
            f"{works_now}"
            f"  if it is there by now, or damaged: delete models--{repo.replace('/', '--')} in {cache} "
            "and fetch it again"
        )
