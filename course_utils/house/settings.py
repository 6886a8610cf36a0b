"""What the environment says: where the course keeps its files, and whether progress bars are drawn.

The cache folder and the progress file are where the operating system keeps such things, unless the environment
variables `COURSE_CACHE` (a folder) and `COURSE_PROGRESS` (a file) say otherwise; asking for a place creates nothing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

FOLDER_NAME = "faithful-circuits"
WEIGHTS = Path(__file__).parent.parent / "weights"  # what ships with the course


def cache_dir() -> Path:
    """The folder for downloaded models: `COURSE_CACHE`, else the user's cache folder."""
    chosen = os.environ.get("COURSE_CACHE")
    return Path(chosen).expanduser() if chosen else _user_folder("cache") / FOLDER_NAME


def progress_file() -> Path:
    """The file of attempts and passes: `COURSE_PROGRESS`, else one in the user's data folder."""
    chosen = os.environ.get("COURSE_PROGRESS")
    return Path(chosen).expanduser() if chosen else _user_folder("data") / FOLDER_NAME / "progress.jsonl"


def _user_folder(kind: str) -> Path:
    """The platform's folder for a user's files of this kind ("cache" or "data")."""
    home = Path.home()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    if sys.platform == "darwin":
        return home / "Library" / ("Caches" if kind == "cache" else "Application Support")
    variable, default = {
        "cache": ("XDG_CACHE_HOME", home / ".cache"),
        "data": ("XDG_DATA_HOME", home / ".local" / "share"),
    }[kind]
    return Path(os.environ.get(variable) or default)


def bars_are_off() -> bool:
    """Whether `COURSE_BARS=off` turns progress bars off (tests, stored notebooks)."""
    return os.environ.get("COURSE_BARS", "").lower() == "off"
