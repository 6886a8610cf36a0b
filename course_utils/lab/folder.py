"""The learner's folder: what was copied there, and the record of it.

The record, `.faithful-circuits.json`, holds for each notebook that was copied the hash of each of its cells. A cell
that still has its hash was not touched by the learner; that is how `update` knows which cells it may replace.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from course_utils.house import read_json, shipped_notebooks, whole_file, write_whole

RECORD, DEFAULT = ".faithful-circuits.json", "faithful-circuits"
Hashes = dict[str, str]  # of a notebook's cells, in order: id -> hash


class CannotUse(Exception):
    """The folder cannot be used, or something in it cannot; the message says why, and what would be right."""


def default_folder() -> Path:
    """Where the learner works: here, if the notebooks were copied here, else in ./faithful-circuits.

    Raises:
        CannotUse: if a folder of that name holds something else, such as a clone of the course.
    """
    if (Path.cwd() / RECORD).exists():
        return Path.cwd()
    folder = Path.cwd() / DEFAULT
    if folder.is_dir() and any(folder.iterdir()) and not (folder / RECORD).exists():
        raise CannotUse(f"{folder} holds something else: name another folder")
    return folder


def hash_of(cell: Mapping[str, Any]) -> str:
    """Of a cell's kind and source; outputs and metadata do not count."""
    return hashlib.sha256(f"{cell['cell_type']}\n{''.join(cell['source'])}".encode()).hexdigest()[:16]


def hashes_of(notebook: Mapping[str, Any]) -> Hashes:
    """The hash of each of a notebook's cells."""
    return {cell["id"]: hash_of(cell) for cell in notebook["cells"]}


def shipped() -> dict[str, Path]:
    """The course's exercise notebooks by their file names."""
    return {path.name: path for path in sorted(shipped_notebooks("notebooks").glob("[0-9][0-9]_*.ipynb"))}


def read_record(folder: Path) -> dict[str, Hashes]:
    """{file name: the hashes of the notebook that was copied}; empty if nothing was copied here.

    Raises:
        CannotUse: if the record is damaged.
    """
    file = folder / RECORD
    if not file.exists():
        return {}
    try:
        record = read_json(file)
    except ValueError as error:
        raise CannotUse(str(error)) from error
    if not (isinstance(record, dict) and all(isinstance(each, dict) for each in record.values())):
        raise CannotUse(f"{file} is not what the course writes there: begin in another folder")
    return record


def write_record(folder: Path, record: dict[str, Hashes]) -> None:
    write_whole(folder / RECORD, json.dumps(record, indent=0) + "\n")


def copy(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all. The copy is the learner's own, also where the original is read-only."""
    with whole_file(target) as partial:
        partial.write_bytes(source.read_bytes())


def fill(folder: Path) -> list[str]:
    """Copy each notebook that is not in the folder, and note it in the record; what is there stays as it is.

    Returns:
        The names of those that were copied.

    Raises:
        CannotUse: if the folder is a file, cannot be written, or its record is damaged.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        record = read_record(folder)
        missing = {name: path for name, path in shipped().items() if not (folder / name).exists()}
        if missing:
            record.update((name, hashes_of(read_json(path))) for name, path in missing.items())
            write_record(folder, record)            # first: what is not on record cannot be updated
        for name, path in missing.items():
            copy(path, folder / name)
    except OSError as error:
        raise CannotUse(f"{folder} cannot be used: {error.strerror or error}") from error
    return list(missing)


def is_current(folder: Path) -> bool:
    """Whether every notebook that was copied here is that of the course which is installed now."""
    record, now = read_record(folder), shipped()
    return all(record[name] == hashes_of(read_json(now[name])) for name in record if name in now)
