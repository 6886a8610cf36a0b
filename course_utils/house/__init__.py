"""What every room needs, without torch: files that are whole or absent, places on the disk, errors by name."""

from course_utils.house.console import in_columns, is_printable
from course_utils.house.errors import (
    CacheNotWritable,
    DamagedModelFile,
    ModelUnavailable,
    NotForThisModel,
    UnknownModel,
    UnknownStep,
    first_line,
)
from course_utils.house.files import (
    check_checkpoint,
    claim_folder,
    damaged,
    read_json,
    read_tensors,
    whole_file,
    write_whole,
)
from course_utils.house.settings import WEIGHTS, bars_are_off, cache_dir, progress_file, shipped_notebooks

__all__ = [
    "CacheNotWritable", "DamagedModelFile", "ModelUnavailable", "NotForThisModel", "UnknownModel", "UnknownStep",
    "WEIGHTS", "bars_are_off", "cache_dir", "check_checkpoint", "claim_folder", "damaged", "first_line",
    "in_columns", "is_printable", "progress_file", "read_json", "read_tensors", "shipped_notebooks", "whole_file",
    "write_whole",
]
