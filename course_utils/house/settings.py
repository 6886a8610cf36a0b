"""What the environment says: where the course keeps its files, and whether progress bars are drawn.

The cache folder and the progress file are where the operating system keeps such things, unless the environment
variables `COURSE_CACHE` (a folder) and `COURSE_PROGRESS` (a file) say otherwise; asking for a place creates nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path, user_data_path

FOLDER_NAME = "faithful-circuits"
PACKAGE = Path(__file__).parent.parent
WEIGHTS = PACKAGE / "weights"  # what ships with the course


def shipped_notebooks(kind: str) -> Path:
    """The folder of the course's own "notebooks" or "solutions": in the package that a wheel installed, else beside it.

    Raises:
        FileNotFoundError: if there is none; it says where it was looked for.
    """
    places = [PACKAGE / kind, PACKAGE.parent / kind]
    for place in places:
        if any(place.glob("[0-9][0-9]_*.ipynb")):
            return place
    raise FileNotFoundError(f"the course's {kind} are neither {places[0]} nor {places[1]}: install it again")


def cache_dir() -> Path:
    """The folder for downloaded models: `COURSE_CACHE`, else the user's cache folder."""
    chosen = os.environ.get("COURSE_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path(FOLDER_NAME, appauthor=False, opinion=False)


def progress_file() -> Path:
    """The file of attempts and passes: `COURSE_PROGRESS`, else one in the user's data folder."""
    chosen = os.environ.get("COURSE_PROGRESS")
    return Path(chosen).expanduser() if chosen else user_data_path(FOLDER_NAME, appauthor=False) / "progress.jsonl"


def bars_are_off() -> bool:
    """Whether `COURSE_BARS=off` turns progress bars off (tests, stored notebooks)."""
    return os.environ.get("COURSE_BARS", "").lower() == "off"
