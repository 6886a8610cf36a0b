"""Single files, whole or not at all: a write that fails leaves what was there, and every message names the file.

A file is written under a temporary name beside its own, which it gets by one rename when it is complete. So a crash, a
full disk or a killed kernel never leaves half a file where a later run would look for one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    from torch import Tensor

PARTIAL_SUFFIX, SETTINGS = ".partial", "settings.json"


@contextlib.contextmanager
def whole_file(final: Path) -> Iterator[Path]:
    """Yield a temporary name; what is written there becomes `final` if, and only if, the block ends without error.

    Raises:
        OSError: if it cannot be written; the message names `final` and the reason. What was there before stays.
    """
    partial = final.with_name(final.name + PARTIAL_SUFFIX)
    try:
        yield partial
        os.replace(partial, final)
    except (OSError, SafetensorError) as error:
        in_text = re.search(r"os error (\d+)", str(error))              # safetensors has the number there only
        number = int(in_text[1]) if in_text else getattr(error, "errno", None)
        if number is None or getattr(error, "filename", None) not in (None, str(partial), partial):
            raise
        raise OSError(number, os.strerror(number), str(final)) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def write_whole(path: Path, text: str) -> None:
    """Write a text file under another name, then give it its own: a kill in between leaves what was there.

    Raises:
        OSError: if it cannot be written; it names the file, and what was there stays.
    """
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(file: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: if it is missing or not valid JSON.
    """
    try:
        return json.loads(file.read_bytes())  # with a byte-order mark or without
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is missing or not valid JSON: {str(error)[:200]}") from error


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, and the texts that are stored with them.

    Raises:
        ValueError: if it is missing or damaged.
    """
    try:
        with safe_open(file, "pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise ValueError(f"{file} is missing or damaged: {str(error)[:200]}") from error


def check_checkpoint(file: Path, tensors: dict[str, Tensor], like: dict[str, Tensor]) -> None:
    """Raise ValueError unless the tensors of a run's checkpoint have the names, shapes and dtypes of `like`."""
    found = {name: (value.shape, value.dtype) for name, value in tensors.items()}
    expected = {name: (value.shape, value.dtype) for name, value in like.items()}
    if wrong := sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name)):
        raise damaged(file, f"{', '.join(wrong[:3])} is not what this run writes")


def damaged(file: Path, what: str) -> ValueError:
    """The error for a damaged file that a run can make again."""
    return ValueError(f"{file} is damaged ({what[:200]}): delete it to make it again")


def claim_folder(folder: Path, settings: dict[str, Any], word: str = "folder") -> None:
    """Note the settings of a run in its folder.

    Raises:
        ValueError: if the folder holds a run with other settings, or the file is damaged.
        OSError: if it cannot be written.
    """
    file, mine = folder / SETTINGS, json.loads(json.dumps(settings))
    if not file.exists():
        with whole_file(file) as partial:
            partial.write_text(json.dumps(mine, indent=1) + "\n", encoding="utf-8")
    theirs = read_json(file)
    if not isinstance(theirs, dict):
        raise damaged(file, "it does not hold settings")
    absent = object()                                               # unlike a setting that is None
    if differ := sorted(name for name in {*mine, *theirs} if mine.get(name, absent) != theirs.get(name, absent)):
        raise ValueError(f"{folder} holds a run with another {', '.join(differ)[:200]}: choose another {word}")
