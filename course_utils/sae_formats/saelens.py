"""Autoencoders in the form of SAELens: cfg.json and sae_weights.safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from course_utils.house import read_json, whole_file
from course_utils.sae_formats.others import Read, read_floats, with_one_threshold

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
ARCHITECTURES = {"relu": "standard", "topk": "topk", "jumprelu": "jumprelu", "gated": "gated"}  # ours: SAELens's
TRANSCODERS = {  # SAELens's, and one of ours: it has no transcoder whose k largest latents are active, and refuses it
    ("relu", False): "transcoder", ("relu", True): "skip_transcoder",
    ("jumprelu", False): "jumprelu_transcoder", ("jumprelu", True): "jumprelu_skip_transcoder",
    ("topk", False): "topk_transcoder", ("topk", True): "topk_skip_transcoder"}
BATCH_TOPK = ("batchtopk", "matryoshka_batchtopk")  # as SAELens trains them; it saves them for use as jumprelu
TYPES = {  # of the entries of cfg.json that are used here
    "d_in": (int,), "d_sae": (int,), "k": (int, NoneType), "hook_head_index": (int, NoneType),
    "hook_name": (str, NoneType), "model_name": (str, NoneType), "architecture": (str, NoneType),
    "activation_fn": (str, NoneType), "activation_fn_kwargs": (dict, NoneType), "metadata": (dict, NoneType),
    "normalize_activations": (str, bool, NoneType), "apply_b_dec_to_input": (bool,),
    "finetuning_scaling_factor": (bool, NoneType), "rescale_acts_by_decoder_norm": (bool, NoneType),
}
DEFAULTS = {**dict.fromkeys(TYPES), "apply_b_dec_to_input": True}


def write_sae(sae: torch.nn.Module, folder: Path) -> None:
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


def config_of(sae: torch.nn.Module) -> dict[str, Any]:
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
    if (hook_name_out := getattr(sae, "hook_name_out", None)) is not None:
        config |= {"architecture": TRANSCODERS[sae.kind, sae.skip], "d_out": sae.d_in}
        config["metadata"] |= {"hook_name_out": hook_name_out}
    if sae.kind == "topk":
        config |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    return config


def read_saelens(folder: Path) -> Read:
    """Both files of SAELens, of any version, also as it trains them.

    Raises:
        ValueError: as `read_config` does.
    """
    config, weights = read_config(folder), read_floats(folder / WEIGHTS)
    batch_topk = config["architecture"] in BATCH_TOPK
    if batch_topk:
        weights = with_one_threshold(weights, "topk_threshold", folder / WEIGHTS)
    about = {**config, **config["metadata"]}
    if (gives := about.get("hook_name_out")) not in (None, about["hook_name"]):
        raise ValueError(f"{folder / CONFIG}: this is a transcoder: what it gives belongs at {str(gives)[:80]}, "
                         "so it cannot stand in the place of what it read")
    return Read({
        "d_in": config["d_in"], "d_sae": config["d_sae"], "kind": "jumprelu" if batch_topk else kind_of(config),
        "k": config["k"], "normalize": config["normalize_activations"], "hook_name": about["hook_name"],
        "head": about["hook_head_index"], "model_name": about["model_name"],
        "subtract_b_dec": config["apply_b_dec_to_input"],
    }, weights, fold=bool(config["rescale_acts_by_decoder_norm"]) and config["architecture"] in ("topk", *BATCH_TOPK))


def read_transcoder(folder: Path) -> tuple[Read, Path, Path]:
    """A transcoder of SAELens, or one that `write_sae` wrote; and the files of weights and of settings.

    Raises:
        ValueError: as `read_config` does, or if it is not a transcoder of one width that reads what it gets as it is.
    """
    file = folder / CONFIG
    config, weights = read_config(folder, tuple(TRANSCODERS.values())), read_floats(folder / WEIGHTS)
    about, width = {**config, **config["metadata"]}, config["d_in"]
    if config.get("d_out", width) != width or config["normalize_activations"] != "none":
        raise ValueError(f"{file}: d_in is {width}, d_out {str(config.get('d_out'))[:80]} and normalize_activations "
                         f"{config['normalize_activations'][:80]!r}; this course knows transcoders that read and give "
                         "d_model numbers as they are")
    if (shape := tuple(weights["W_dec"].shape) if "W_dec" in weights else None) != (config["d_sae"], width):
        raise ValueError(f"{folder / WEIGHTS} does not fit {file}: W_dec is {shape}")
    kind, skip = next(each for each, name in TRANSCODERS.items() if name == config["architecture"])
    return Read({
        "d_in": width, "d_sae": config["d_sae"], "kind": kind, "k": config["k"], "skip": skip,
        "hook_name": about["hook_name"], "hook_name_out": str(about.get("hook_name_out") or ""),
        "model_name": about["model_name"],
    }, weights, fold=False), folder / WEIGHTS, file


KNOWN = (*ARCHITECTURES.values(), *BATCH_TOPK)


def read_config(folder: Path, known: tuple[str, ...] = KNOWN) -> dict[str, Any]:
    """cfg.json with the names of SAELens 6, also where an older version wrote it, and with every entry in TYPES.

    Raises:
        ValueError: as `SparseAutoencoder.load` does.
    """
    file = folder / CONFIG
    config = read_json(file)
    if not isinstance(config, dict) or not {"d_in", "d_sae"} <= set(config):
        raise ValueError(f"{file} does not say d_in and d_sae: it is not the configuration of an autoencoder")
    old_names = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index",
                 "activation_fn_str": "activation_fn"}
    config = {**DEFAULTS, **{old_names.get(name, name): value for name, value in config.items()}}
    _judge_architecture(config, file, known)
    config["metadata"] = {} if config["metadata"] is None else config["metadata"]
    if config["architecture"] in BATCH_TOPK:
        config["k"] = None                                                  # a mean over a batch, not needed any more
    _check_types(config, file)
    _check_types(config["metadata"], file)
    if config["architecture"] == "topk" and config["k"] is None:
        config["k"] = (config["activation_fn_kwargs"] or {}).get("k")
        _check_types(config, file)
    if other := {name for name, value in (config["activation_fn_kwargs"] or {}).items() if name != "k" and value}:
        raise ValueError(f"{file}: activation_fn_kwargs {', '.join(sorted(other))[:80]} are not supported; only k is")
    config["normalize_activations"] = config["normalize_activations"] or "none"
    return config


def _judge_architecture(config: dict[str, Any], file: Path, known: tuple[str, ...]) -> None:
    """Fill in the architecture where an old file names only its activation function. Raises ValueError if unknown."""
    function = config["activation_fn"]
    if config["architecture"] in (None, "standard"):
        config["architecture"] = "topk" if function == "topk" else "standard"           # before topk was one by itself
    if config["architecture"] not in known:
        named = repr(config["architecture"])[:80]
        raise ValueError(f"{file}: architecture {named} is not one that this course knows; it knows {', '.join(known)}")
    if function not in (None, "relu") and (function, config["architecture"]) != ("topk", "topk"):
        named = repr(function)[:80]
        raise ValueError(f"{file}: activation_fn {named} with {config['architecture']} is not one that this course "
                         "knows; it knows relu, and topk by itself")


def _check_types(config: dict[str, Any], file: Path) -> None:
    for name, types in TYPES.items():
        if name in config and type(config[name]) not in types:
            expected = " or ".join("null" if each is NoneType else each.__name__ for each in types)
            raise ValueError(f"{file}: {name} must be {expected}, not {type(config[name]).__name__}")


def kind_of(config: dict[str, Any]) -> str:
    """Our word for SAELens's architecture."""
    return next(kind for kind, name in ARCHITECTURES.items() if name == config["architecture"])


def fold_decoder_norm(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same autoencoder with unit decoder rows, for files whose pre-activations are to be scaled by their norms.

    A row of zeros stays one, and its latent, scaled by 0, is never active.
    """
    norm = weights["W_dec"].norm(dim=1)                                     # [d_sae]
    return {**weights, "W_enc": weights["W_enc"] * norm, "b_enc": weights["b_enc"] * norm,
            "W_dec": weights["W_dec"] / torch.where(norm > 0, norm, 1)[:, None]}
