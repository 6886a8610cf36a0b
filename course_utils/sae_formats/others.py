"""Autoencoders that other libraries wrote, read into ours: plain tensors only, never a pickle.

Every library has its own names, lays its matrices its own way, and has its own rule for b_dec:

    library              files                         kind           the encoder sees   encoder        decoder
    Gemma Scope          params.npz                    jumprelu       x                  [d_in, d_sae]  [d_sae, d_in]
    Gemma Scope 2        params.safetensors            jumprelu       x                  [d_in, d_sae]  [d_sae, d_in]
    sparsify             cfg.json, sae.safetensors     topk           x − b_dec          [d_sae, d_in]  [d_sae, d_in]
    dictionary_learning  config.json, ae.safetensors   of its class   of its class       [d_sae, d_in]  [d_in, d_sae]

dictionary_learning itself writes ae.pt, a pickle: `refuse_pickles` says how to make ae.safetensors of it. Its newest
classes (and JumpReluAutoEncoder) lay W_enc and W_dec as Gemma Scope does. Sources: SparseCoder.encode in sparsify 1.3,
dictionary.py and trainers/ in dictionary_learning (August 2025), the loaders of SAELens 6.54.
"""

from __future__ import annotations

import re
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from course_utils.house import read_json, read_tensors

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt")
OUR_NAMES = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec", "decoder.bias": "b_dec",
             "bias": "b_dec", "decoder_bias": "b_dec", "gate_bias": "b_gate", "mag_bias": "b_mag"}
NO_PLACE = {"hook_name": None, "head": None, "model_name": None}


class Read(NamedTuple):
    """What a reader found: the arguments of SparseAutoencoder, and its tensors under our names."""

    settings: dict[str, Any]
    weights: dict[str, Tensor]
    fold: bool = False              # whether every decoder row is to become a unit vector, and its latent its length


class Format(NamedTuple):
    """One library's way to keep an autoencoder in a folder."""

    library: str
    files: tuple[str, ...]          # all that it needs; the last one holds the weights
    read: Callable[[Path], Read]


# --- what they have in common ----------------------------------------------------------------------------------------


def read_floats(file: Path, drop: Iterable[str] = ()) -> dict[str, Tensor]:
    """The tensors of a safetensors file or an npz file, but for those that are named in `drop`.

    Raises:
        ValueError: if it is missing or damaged, or holds other numbers than 16, 32 or 64 bit floats.
    """
    read = read_npz if file.suffix == ".npz" else lambda path: read_tensors(path)[0]
    tensors = {name: value for name, value in read(file).items() if name not in drop}
    if others := [f"{name} ({value.dtype})" for name, value in tensors.items() if value.dtype not in DTYPES]:
        raise ValueError(f"{file}: numbers of these kinds are not supported: {', '.join(others)[:200]}")
    return tensors


def read_npz(file: Path) -> dict[str, Tensor]:
    """The arrays of a file of numpy.

    Raises:
        ValueError: if it is missing or damaged, or would have to be unpickled.
    """
    try:
        with np.load(file, allow_pickle=False) as opened:
            return {name: torch.tensor(opened[name]) for name in opened.files}
    except (OSError, ValueError, TypeError, EOFError, KeyError, AttributeError, RuntimeError, MemoryError, SyntaxError,
            OverflowError, tokenize.TokenError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{file} is missing or damaged: {str(error)[:200]}") from error


def size_of(weights: dict[str, Tensor], file: Path) -> dict[str, int]:
    """d_in and d_sae, from W_dec [d_sae, d_in].

    Raises:
        ValueError: if there is no such matrix.
    """
    shape = tuple(weights["W_dec"].shape) if "W_dec" in weights else ()
    if len(shape) != 2:
        raise ValueError(f"{file} has no decoder matrix: it holds {', '.join(weights)[:200] or 'nothing'}")
    return {"d_in": shape[1], "d_sae": shape[0]}


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under our names. The matrices of torch's linear layers, [d_out, d_in], are transposed."""
    return {OUR_NAMES.get(name, name): value.T if name.endswith(".weight") and value.ndim == 2 else value
            for name, value in weights.items()}


def with_one_threshold(weights: dict[str, Tensor], name: str, file: Path) -> dict[str, Tensor]:
    """A batch-TopK autoencoder's one threshold, `name`, given to each of its latents: a JumpReLU.

    While it is trained, a whole batch shares its k · batch largest latents. Afterwards one threshold, the mean of the
    smallest that were kept, decides for each position alone. The libraries themselves do the same.
    Raises:
        ValueError: if there is no such number, or it is negative: then it was never estimated.
    """
    one, b_enc = weights.get(name), weights.get("b_enc")
    if one is None or b_enc is None or b_enc.ndim != 1 or one.numel() != 1 or not one >= 0:
        raise ValueError(f"{file} does not fit a batch-TopK autoencoder: it needs b_enc and {name}, one number that "
                         "training has estimated. Save it for inference with the library that trained it, and load "
                         "that")
    threshold = one.reshape(1).to(torch.promote_types(b_enc.dtype, torch.float32)).expand(b_enc.shape)
    return {**{other: value for other, value in weights.items() if other != name}, "threshold": threshold}


def refuse_unread(names: list[str], where: object) -> None:
    """Raise ValueError, with what to do, if these files are not read here: Llama Scope's, or a pickle."""
    refuse_llama_scope(names, where)
    refuse_pickles(names, where)


def refuse_pickles(names: Iterable[str], where: object) -> None:
    """Raise ValueError, with what to do, if one of these files is a pickle."""
    if not (found := sorted(name for name in names if name.endswith(PICKLES))):
        return
    what_to_do = ("write its tensors as SAELens does: cfg.json and sae_weights.safetensors with W_enc [d_in, d_sae], "
                  "b_enc, W_dec [d_sae, d_in] and b_dec")
    if Path(found[0]).name == "ae.pt":
        what_to_do = ("write dictionary_learning's tensors as ae.safetensors, beside config.json: this course reads "
                      "it\n    tensors = torch.load('ae.pt', weights_only=True)\n    safetensors.torch.save_file("
                      "{name: value.contiguous() for name, value in tensors.items()}, 'ae.safetensors')")
    raise ValueError(f"{where} keeps its weights in {found[0]}, a pickle: reading one can run any code that is in it, "
                     f"so this course reads none.\n  Where you trust it, {what_to_do}")


def refuse_llama_scope(names: Iterable[str], where: object) -> None:
    """Raise ValueError, with what to do, if one of these files is the settings of an autoencoder of Llama Scope."""
    if any(Path(name).name == "hyperparams.json" for name in names):
        raise ValueError(
            f"{where} has a hyperparams.json: it looks like Llama Scope, whose files this course does not read (one "
            "threshold for all latents, for activations rescaled by their mean norm). SAELens reads them, and writes "
            "what this course reads:\n"
            "    sae_lens.SAE.from_pretrained('llama_scope_lxr_8x', 'l0r_8x').save_model('folder')")


# --- Gemma Scope -----------------------------------------------------------------------------------------------------


def read_gemma_scope(folder: Path) -> Read:
    """JumpReLU; the names say neither the model nor the place, but those of the repository and its folders do."""
    return _gemma_scope(folder, folder / "params.npz")


def read_gemma_scope_2(folder: Path) -> Read:
    """The same, with small letters in the names of the matrices."""
    return _gemma_scope(folder, folder / "params.safetensors")


def _gemma_scope(folder: Path, file: Path) -> Read:
    path = folder.absolute().as_posix()
    if found := re.search(r"gemma-scope-\d.*?(transcoder|/embedding/)", path):
        what = found[1].strip("/")
        raise ValueError(f"{folder}: Gemma Scope's {what} is not supported: it reconstructs no layer's own activation")
    weights = {re.sub("^w_", "W_", name): value for name, value in read_floats(file).items()}
    place = re.search(r"gemma-scope-.*?(res|att)[a-z_]*/.*?layer_(\d+)", path)
    point = {"res": "hook_resid_post", "att": "attn.hook_z"}
    hook_name = f"blocks.{place[2]}.{point[place[1]]}" if place else None
    return Read({**size_of(weights, file), "kind": "jumprelu", "subtract_b_dec": False, **NO_PLACE,
                 "hook_name": hook_name}, weights)


# --- sparsify --------------------------------------------------------------------------------------------------------


def read_sparsify(folder: Path) -> Read:
    """TopK, what is negative set to 0.

    Raises:
        ValueError: for a transcoder, a skip connection or another activation.
    """
    config, file = read_json(folder / "cfg.json"), folder / "sae.safetensors"
    if not isinstance(config, dict) or type(config.get("k")) is not int:
        raise ValueError(f"{folder / 'cfg.json'} does not say k: it is not the configuration of a TopK autoencoder")
    harmful = [name for name in ("transcode", "skip_connection", "signed") if config.get(name)]
    if config.get("activation", "topk") != "topk":
        harmful.append("activation")
    if harmful:
        asked = ", ".join(f"{name} {str(config[name])[:40]}" for name in harmful)
        raise ValueError(f"{folder / 'cfg.json'}: {asked} is not supported; supported is a plain TopK autoencoder")
    weights = renamed(read_floats(file))
    size, place = size_of(weights, file), re.fullmatch(r"(?:.*\.)?(?:layers|h)\.(\d+)", folder.name)
    said = {"d_in": config.get("d_in"), "d_sae": config.get("num_latents")}    # (num_latents 0: see expansion_factor)
    size |= {name: value for name, value in said.items() if value and type(value) is int}
    return Read({**size, "kind": "topk", "k": config["k"], **NO_PLACE,
                 "hook_name": f"blocks.{place[1]}.hook_resid_post" if place else None}, weights)


# --- dictionary_learning ---------------------------------------------------------------------------------------------

CLASSES = {  # of dictionary_learning: kind, whether the encoder sees x − b_dec, whether loading makes decoder rows unit
    "AutoEncoder": ("relu", True, True), "AutoEncoderNew": ("relu", False, False),
    "GatedAutoEncoder": ("gated", True, False), "JumpReluAutoEncoder": ("jumprelu", False, False),
    "AutoEncoderTopK": ("topk", True, False), "BatchTopKSAE": ("jumprelu", True, False),
    "MatryoshkaBatchTopKSAE": ("jumprelu", True, False),
}


def read_dictionary_learning(folder: Path) -> Read:
    """What its class says, see CLASSES.

    Raises:
        ValueError: if the class is none of them.
    """
    config, file = read_json(folder / "config.json"), folder / "ae.safetensors"
    config = config if isinstance(config, dict) else {}
    trainer = config["trainer"] if isinstance(config.get("trainer"), dict) else {}
    name = trainer.get("dict_class")
    if not isinstance(name, str) or name not in CLASSES:
        raise ValueError(f"{folder / 'config.json'}: trainer.dict_class {str(name)[:80]!r} is not one that this course "
                         f"knows; it knows {', '.join(CLASSES)}")
    kind, subtract_b_dec, fold = CLASSES[name]
    extra = ("k", "group_sizes", *(("threshold",) if kind == "topk" else ()))
    weights = renamed(read_floats(file, drop=extra))
    if "BatchTopK" in name:
        weights = with_one_threshold(weights, "threshold", file)
    k, layer, buffer = trainer.get("k"), trainer.get("layer"), config.get("buffer")
    if kind == "topk" and type(k) is not int:
        raise ValueError(f"{folder / 'config.json'}: trainer.k must be int, not {type(k).__name__}")
    read_at_exit = not isinstance(buffer, dict) or buffer.get("io", "out") == "out"
    at_stream = str(trainer.get("submodule_name") or "resid_post").startswith("resid_post") and read_at_exit
    return Read({**size_of(weights, file), "kind": kind, "k": k if kind == "topk" else None, **NO_PLACE,
                 "hook_name": f"blocks.{layer}.hook_resid_post" if at_stream and type(layer) is int else None,
                 "subtract_b_dec": subtract_b_dec}, weights, fold)


FORMATS = (
    Format("Gemma Scope", ("params.npz",), read_gemma_scope),
    Format("Gemma Scope 2", ("params.safetensors",), read_gemma_scope_2),
    Format("sparsify", ("cfg.json", "sae.safetensors"), read_sparsify),
    Format("dictionary_learning", ("config.json", "ae.safetensors"), read_dictionary_learning),
)
