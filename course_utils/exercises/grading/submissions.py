"""What was handed in: which files are submissions, whose they are, and the cells of a notebook.

Nothing of a submission is run or parsed here but its JSON. Archives are opened in memory, one inside another at most.
"""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from course_utils.house import shipped_notebooks

MAX_BYTES = 50_000_000  # a larger notebook is not read
MAX_ARCHIVE_BYTES = 500_000_000  # nor an archive; nor more than this out of one
MAX_FILES = 2_000  # in an archive
NOTEBOOK = re.compile(r"\.ipynb(\.txt|\.json)?$", re.IGNORECASE)  # browsers save downloads under the longer names
ARCHIVE = re.compile(r"\.zip$", re.IGNORECASE)
NO_MATTER = re.compile(r"^(\.|__MACOSX$|Thumbs\.db$|desktop\.ini$)", re.IGNORECASE)  # what systems leave in folders
MOODLE = re.compile(r"^(?P<student>.+?)_(?P<id>\d+)_assignsubmission_\w+?_?$")
CANVAS = re.compile(r"^(?P<student>[^_/]+)_(?:LATE_)?(?P<id>\d+)_\d+_", re.IGNORECASE)


class Unreadable(Exception):
    """The file is not a notebook that can be graded; the message says what it is instead."""


@dataclass(frozen=True)
class Submission:
    """A notebook that was handed in, or, where `problem` says why it cannot be graded, some other file."""

    name: str  # its path in the folder; of a file in an archive, the archive's path and its own
    content: bytes = b""
    problem: str = ""

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).name

    @property
    def student(self) -> tuple[str, str]:
        """Name and id, from the names that Moodle and Canvas give; otherwise the first folder's name, or the file's."""
        parts = PurePosixPath(self.name).parts
        for part in parts:
            if found := MOODLE.match(part) or CANVAS.match(part):
                return found["student"], found["id"]
        return (parts[0] if len(parts) > 1 else re.split(NOTEBOOK, parts[0])[0]), ""


def find(folder: Path) -> Iterator[Submission]:
    """Every file under the folder, in order, as a submission; also those that cannot be graded, and why.

    Left out without a word: names that begin with a dot, `__MACOSX`, and what systems leave beside files.
    """
    problems: list[OSError] = []
    for place, folders, files in os.walk(folder, onerror=problems.append):
        folders[:] = sorted(name for name in folders if not NO_MATTER.match(name))
        for name in sorted(files):
            if NO_MATTER.match(name):
                continue
            path = Path(place, name)
            shown = path.relative_to(folder).as_posix()
            try:
                yield from _opened(shown, _content(path))
            except Unreadable as problem:
                yield Submission(shown, problem=str(problem))
    for error in problems:
        shown = os.path.relpath(os.fsdecode(error.filename), folder)
        yield Submission(shown, problem=f"the folder cannot be read: {error.strerror}")


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise Unreadable("it is not a file")
    is_archive = ARCHIVE.search(path.name)
    if not is_archive and not NOTEBOOK.search(path.name):
        return b""
    most = MAX_ARCHIVE_BYTES if is_archive else MAX_BYTES
    try:
        if path.stat().st_size > most:
            raise Unreadable(f"the file has more than {most / 1e6:.0f} MB")
        return path.read_bytes()
    except OSError as error:
        raise Unreadable(f"the file cannot be read: {error.strerror}") from error


def _opened(name: str, content: bytes, depth: int = 0) -> Iterator[Submission]:
    if NOTEBOOK.search(name):
        yield Submission(name, content)
    elif not ARCHIVE.search(name):
        kind = PurePosixPath(name).suffix.lower() or "a file without an ending"
        yield Submission(name, problem=f"not a notebook ({kind}): hand in the .ipynb file")
    elif depth > 1:
        yield Submission(name, problem="an archive in an archive in an archive is not opened")
    else:
        yield from _in_archive(name, content, depth)


def _in_archive(name: str, content: bytes, depth: int) -> Iterator[Submission]:
    """The files of a zip; read in memory, so that no name in it leads anywhere."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            infos = [each for each in archive.infolist() if not each.is_dir()
                     and not any(NO_MATTER.match(part) and part != ".." for part in PurePosixPath(each.filename).parts)]
            if len(infos) > MAX_FILES or sum(each.file_size for each in infos) > MAX_ARCHIVE_BYTES:
                raise Unreadable(f"the archive holds more than {MAX_FILES:,} files or {MAX_ARCHIVE_BYTES / 1e6:.0f} MB")
            for each in sorted(infos, key=lambda info: info.filename):
                parts = [part for part in PurePosixPath(each.filename).parts if part not in ("..", "/")]
                inside = "/".join([name, *parts])
                wanted = NOTEBOOK.search(inside) or ARCHIVE.search(inside)
                if NOTEBOOK.search(inside) and each.file_size > MAX_BYTES:
                    yield Submission(inside, problem=f"the file has more than {MAX_BYTES / 1e6:.0f} MB")
                    continue
                yield from _opened(inside, _unzipped(archive, each) if wanted else b"", depth + 1)
    except Unreadable as problem:
        yield Submission(name, problem=str(problem))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, ValueError, EOFError) as error:
        yield Submission(name, problem=f"the archive cannot be opened: {str(error)[:100]}")


def _unzipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """At most as many bytes as the archive says that there are."""
    with archive.open(info) as file:
        content = file.read(info.file_size + 1)
    if len(content) > info.file_size:
        raise Unreadable("the archive says less than it holds")
    return content


# --- a notebook --------------------------------------------------------------------------------------------


def read_cells(content: bytes) -> list[str]:
    """The code cells of a notebook.

    Raises:
        Unreadable: if it is not one.
    """
    try:
        notebook = json.loads(content)  # with a byte-order mark or without
        sources = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
        metadata = notebook.get("metadata")
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"the file is not a notebook: not valid JSON ({str(error)[:80]})") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise Unreadable("the file is not a notebook in format 4: it has no list of cells") from error
    if (language := _language(metadata)) != "python":
        raise Unreadable(f"the notebook's kernel is for {language[:40]}; the course is in Python")
    return sources


def _language(metadata: object) -> str:
    """What the metadata say, so far as they say anything."""
    for table, key in (("language_info", "name"), ("kernelspec", "language")):
        entry = metadata.get(table) if isinstance(metadata, dict) else None
        if isinstance(entry, dict) and entry.get(key):
            return str(entry[key]).lower().removeprefix("i")  # "ipython" is Python
    return "python"


def shipped_cells(lesson: str) -> set[str]:
    """The code cells of the lesson as it ships; empty where the course has no notebooks."""
    try:
        paths = sorted(shipped_notebooks("notebooks").glob(f"{lesson}_*.ipynb"))
    except FileNotFoundError:
        return set()
    return {source.strip() for path in paths for source in read_cells(path.read_bytes())}
