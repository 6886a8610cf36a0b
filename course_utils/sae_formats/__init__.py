"""Autoencoders on disk, as plain tensors and settings: written as SAELens does, read as any of four libraries does."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from course_utils.sae_formats import others, saelens
from course_utils.sae_formats.objects import acts_by_sequence, check_own_call, encode_decode, refuse_transcoder
from course_utils.sae_formats.others import Format, Read, refuse_pickles, refuse_unread
from course_utils.sae_formats.saelens import CONFIG, WEIGHTS, fold_decoder_norm, read_transcoder, write_sae

__all__ = [
    "CONFIG", "FORMATS", "WEIGHTS", "Format", "Read", "acts_by_sequence", "check_own_call", "encode_decode",
    "fold_decoder_norm", "read_folder", "read_transcoder", "refuse_pickles", "refuse_transcoder", "refuse_unread",
    "write_sae",
]

FORMATS = (Format("SAELens", (CONFIG, WEIGHTS), saelens.read_saelens), *others.FORMATS)


def read_folder(folder: Path) -> tuple[Read, Path, Path]:
    """What the files of any library in FORMATS hold, the file of weights, and that of settings (it may be the same).

    W_dec is as large as the settings say.
    Raises:
        ValueError: if a file is missing, damaged or a pickle, or asks for what the course does not do.
    """
    if folder.is_file():
        raise ValueError(f"{folder} is a file: name the folder that it is in")
    found = format_of(folder)
    read = found.read(folder)
    weight_file, settings_file = folder / found.files[-1], folder / found.files[0]
    _check_weights(read.weights, (read.settings["d_sae"], read.settings["d_in"]), weight_file, settings_file)
    return read, weight_file, settings_file


def _check_weights(weights: dict[str, Tensor], expected: tuple[int, int], file: Path, config: Path) -> None:
    """Raise ValueError, before anything as large as the configuration says is made, unless W_dec is that large.

    Old files hold a factor that scales the latents: 1 where nothing was fine-tuned, and then it is dropped; any other
    is refused.
    """
    for name in ("scaling_factor", "finetuning_scaling_factor"):
        if (factor := weights.pop(name, None)) is not None and not (factor == 1).all():
            raise ValueError(f"{file}: its {name} is not 1 everywhere; a fine-tuned scaling factor is not supported")
    shape = tuple(weights["W_dec"].shape) if "W_dec" in weights else None
    if shape != expected and min(expected) > 0:
        raise ValueError(f"{file} does not fit {config}: W_dec is {shape}, not {expected}")
    for name, value in weights.items():
        if name.startswith(("W_", "b_")) and not value.isfinite().all():
            raise ValueError(f"{file}: {name} is not finite everywhere")


def format_of(folder: Path) -> Format:
    """The library whose weights are in a folder; SAELens where there are none, whose reader says what is missing.

    Raises:
        ValueError: if there is only a pickle, or what Llama Scope publishes.
    """
    found = next((each for each in FORMATS if (folder / each.files[-1]).is_file()), None)
    if found is None and folder.is_dir():
        refuse_unread([file.name for file in folder.iterdir()], folder)
    return found or FORMATS[0]
