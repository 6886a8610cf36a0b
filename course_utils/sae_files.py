"""Autoencoders on disk and on the hub, in the form of SAELens: cfg.json and sae_weights.safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from course_utils.files import read_json, read_tensors, whole_file
from course_utils.hub import first_line
from course_utils.model_files import ModelUnavailable
from course_utils.sae import NORMS, SparseAutoencoder

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
ARCHITECTURES = {"relu": "standard", "topk": "topk", "jumprelu": "jumprelu", "gated": "gated"}  # ours: SAELens's
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NoneType = type(None)
TYPES = {  # of the entries of cfg.json that are used here
    "d_in": (int,), "d_sae": (int,), "k": (int, NoneType), "hook_head_index": (int, NoneType),
    "hook_name": (str, NoneType), "model_name": (str, NoneType), "architecture": (str, NoneType),
    "activation_fn": (str, NoneType), "activation_fn_kwargs": (dict, NoneType), "metadata": (dict,),
    "normalize_activations": (str, bool, NoneType), "apply_b_dec_to_input": (bool,),
    "finetuning_scaling_factor": (bool, NoneType), "rescale_acts_by_decoder_norm": (bool, NoneType),
}
DEFAULTS = {**dict.fromkeys(TYPES), "metadata": {}, "apply_b_dec_to_input": True}
RELEASES = {"gpt2-small-res-jb": "jbloom/GPT2-Small-SAEs-Reformatted"}  # SAELens's names, and the repository of each


def write_sae(sae: SparseAutoencoder, folder: Path) -> None:
    """Write both files. SAELens finds there all that it needs to load them.

    Raises:
        OSError: if they cannot be written; the autoencoder that was there before stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in sae.state_dict().items()}
    with whole_file(folder / CONFIG) as new_config:
        new_config.write_text(json.dumps(config_of(sae), indent=1) + "\n", encoding="utf-8")
        with whole_file(folder / WEIGHTS) as new_weights:
            save_file(weights, new_weights)
            (folder / CONFIG).unlink(missing_ok=True)   # a kill from here on leaves none: never one with other weights


def config_of(sae: SparseAutoencoder) -> dict[str, Any]:
    """What SAELens's cfg.json holds."""
    config = {
        "architecture": ARCHITECTURES[sae.kind], "d_in": sae.d_in, "d_sae": sae.d_sae,
        "dtype": str(sae.W_dec.dtype).removeprefix("torch."), "device": "cpu",
        "apply_b_dec_to_input": sae.subtract_b_dec, "normalize_activations": sae.normalize,
        "reshape_activations": "none",
        "metadata": {"hook_name": sae.hook_name, "hook_head_index": sae.head, "model_name": sae.model_name,
                     "prepend_bos": True,
                     "sae_lens_version": "6.54.0"},  # the version whose form this is
    }
    if sae.kind == "topk":
        config |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    return config


def read_sae(folder: Path) -> SparseAutoencoder:
    """Read both files, of any version of SAELens; see `SparseAutoencoder.load` for the errors."""
    config, (weights, _) = read_config(folder), read_tensors(folder / WEIGHTS)
    weights.pop("scaling_factor", None)                                     # of old files, where it is not used
    _check_weights(weights, config, folder)
    about = {**config, **config["metadata"]}
    try:
        sae = SparseAutoencoder(
            config["d_in"], config["d_sae"], kind_of(config), k=config["k"],
            normalize=config["normalize_activations"], hook_name=about["hook_name"], head=about["hook_head_index"],
            model_name=about["model_name"], subtract_b_dec=config["apply_b_dec_to_input"],
        )
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error
    try:
        sae.to(weights["W_dec"].dtype).load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{folder / WEIGHTS} does not fit {folder / CONFIG}: {error}") from error
    if sae.kind == "topk" and config["rescale_acts_by_decoder_norm"]:
        sae.load_state_dict(fold_decoder_norm(weights))
    return sae.requires_grad_(False).eval()


def _check_weights(weights: dict[str, Tensor], config: dict[str, Any], folder: Path) -> None:
    """Raise ValueError before anything as large as the configuration says is made, unless the weights are as large."""
    shape, expected = tuple(weights["W_dec"].shape) if "W_dec" in weights else None, (config["d_sae"], config["d_in"])
    if shape != expected and min(expected) > 0:
        raise ValueError(f"{folder / WEIGHTS} does not fit {folder / CONFIG}: W_dec is {shape}, not {expected}")
    if others := [f"{name} ({value.dtype})" for name, value in weights.items() if value.dtype not in DTYPES]:
        raise ValueError(f"{folder / WEIGHTS}: numbers of these kinds are not supported: {', '.join(others)[:200]}")


def read_config(folder: Path) -> dict[str, Any]:
    """cfg.json with the names of SAELens 6, also where an older version wrote it, and with every entry in TYPES.

    Raises ValueError as `SparseAutoencoder.load` does.
    """
    file = folder / CONFIG
    config = read_json(file)
    if not isinstance(config, dict) or not {"d_in", "d_sae"} <= set(config):
        raise ValueError(f"{file} does not say d_in and d_sae: it is not the configuration of an autoencoder")
    old_names = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index",
                 "activation_fn_str": "activation_fn"}
    config = {**DEFAULTS, **{old_names.get(name, name): value for name, value in config.items()}}
    _check_types(config, file)
    _check_types(config["metadata"], file)
    if config["activation_fn"] == "topk" or config["architecture"] is None:           # before topk was one by itself
        config["architecture"] = "topk" if config["activation_fn"] == "topk" else "standard"
    if config["k"] is None:
        config["k"] = (config["activation_fn_kwargs"] or {}).get("k")
        _check_types(config, file)
    config["normalize_activations"] = config["normalize_activations"] or "none"
    if config["architecture"] not in ARCHITECTURES.values():
        named = repr(config["architecture"])[:80]
        raise ValueError(f"{file}: architecture {named} is not one that this course knows; it knows "
                         f"{', '.join(ARCHITECTURES.values())}")
    if config["normalize_activations"] not in NORMS:
        named = repr(config["normalize_activations"])[:80]
        raise ValueError(f"{file}: normalize_activations {named} is not supported; supported are {', '.join(NORMS)}")
    if config["finetuning_scaling_factor"]:
        raise ValueError(f"{file}: a fine-tuned scaling factor is not supported")
    return config


def _check_types(config: dict[str, Any], file: Path) -> None:
    for name, types in TYPES.items():
        if name in config and type(config[name]) not in types:
            expected = " or ".join("null" if each is NoneType else each.__name__ for each in types)
            raise ValueError(f"{file}: {name} must be {expected}, not {type(config[name]).__name__}")


def kind_of(config: dict[str, Any]) -> str:
    """Our word for SAELens's architecture."""
    return next(kind for kind, name in ARCHITECTURES.items() if name == config["architecture"])


def fold_decoder_norm(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same autoencoder with unit decoder rows, for files whose pre-activations are to be scaled by their norms."""
    norm = weights["W_dec"].norm(dim=1)                                     # [d_sae]
    return {**weights, "W_enc": weights["W_enc"] * norm, "b_enc": weights["b_enc"] * norm,
            "W_dec": weights["W_dec"] / norm[:, None]}


def load_pretrained_sae(release: str, sae_id: str) -> SparseAutoencoder:
    """A published autoencoder, from the Hugging Face hub or its local cache.

    Args:
        release: a name in RELEASES, or the repository itself ("owner/name").
        sae_id: the folder in it, such as "blocks.8.hook_resid_pre".
    Raises:
        ModelUnavailable: if it is not in the cache and the hub does not answer.
        ValueError: if the release is neither known nor a repository, or as `SparseAutoencoder.load` does.
    """
    from huggingface_hub import constants, hf_hub_download

    repo = RELEASES.get(release, release)
    if "/" not in repo:
        raise ValueError(f"there is no release {release!r}; known are {', '.join(RELEASES)}, and any repository "
                         "of the hub in SAELens's form can be named as owner/name")
    try:
        files = [hf_hub_download(repo, f"{sae_id}/{name}") for name in (CONFIG, WEIGHTS)]
    except (OSError, ValueError) as error:
        raise ModelUnavailable(
            f"the autoencoder {release}, {sae_id} is not on this machine and could not be downloaded.\n"
            f"  needed:  {CONFIG} and {WEIGHTS} in {repo}/{sae_id}\n"
            f"  tried:   the local Hugging Face cache {constants.HF_HUB_CACHE}: not there\n"
            f"           the Hugging Face hub: {first_line(error)}\n"
            f"  works now: the autoencoders that the course ships, see course_utils.shipped_saes"
        ) from error
    sae = SparseAutoencoder.load(Path(files[0]).parent)
    sae.hook_name = sae.hook_name or sae_id
    return sae
