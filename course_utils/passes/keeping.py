"""Long runs over many sequences, which continue where they were stopped: their sums are kept in a folder."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from jaxtyping import Bool, Int
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from course_utils.house import bars_are_off, claim_folder, damaged, read_tensors, whole_file
from course_utils.passes.sites import Site

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

SECONDS = 60            # between two times that sums are kept


class Kept(Protocol):
    """Running sums that can be written down. `done` says how many sequences are in them."""

    done: int

    def tensors(self) -> dict[str, Tensor]: ...
    def take(self, tensors: dict[str, Tensor]) -> None: ...


Some = TypeVar("Some", bound=Kept)


class Keeper:
    """Keeps sums in a folder, about once a minute, so that a run that was stopped continues."""

    def __init__(self, folder: str | Path, settings: dict[str, Any]) -> None:
        """Raises ValueError if the folder holds a run with other settings."""
        self.folder, self.last = Path(folder), time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        claim_folder(self.folder, settings)

    def read(self, name: str, sums: Kept) -> None:
        """Put what was kept into these sums, if there is anything. Raises ValueError if the file is damaged."""
        file = self.folder / f"{name}.safetensors"
        if file.exists():
            try:
                sums.take(read_tensors(file)[0])
            except KeyError as error:
                raise damaged(file, f"{error} is missing") from error

    def is_time(self) -> bool:
        """Whether SECONDS are over since sums were kept."""
        return time.monotonic() - self.last >= SECONDS

    def write(self, name: str, sums: Kept) -> None:
        """Keep these; a kill leaves the file that was there."""
        with whole_file(self.folder / f"{name}.safetensors") as partial:
            save_file({each: value.cpu().contiguous() for each, value in sums.tensors().items()}, partial)
        self.last = time.monotonic()


def over_batches(
    sums: Some, rows: Int[Tensor, "some"], batch_size: int, add: Callable[[Some, Int[Tensor, "batch"]], None],
    desc: str, keep: Keeper | None = None,
) -> Some:
    """Let `add` add these sequences to the sums, batch by batch; those that were kept are not computed again.

    Sums of a run that was stopped are, to the last bit, those of a run that was not.
    """
    if keep is not None:
        keep.read(desc, sums)
    batches = [rows[start : start + batch_size] for start in range(sums.done, len(rows), batch_size)]
    for batch in tqdm(batches, desc=desc, delay=1, disable=bars_are_off()):
        add(sums, batch)
        sums.done += len(batch)
        if keep is not None and (keep.is_time() or sums.done == len(rows)):
            keep.write(desc, sums)
    return sums


def what_is_run(
    model: TransformerBridge, sae: object, site: Site, tokens: Int[Tensor, "n pos"], mask: Bool[Tensor, "n pos"]
) -> dict[str, Any]:
    """What a run with an autoencoder depends on, in short: the settings of its folder."""
    kind = f"{sae!r} {getattr(sae, 'cfg', '')}" if isinstance(sae, torch.nn.Module) else type(sae).__name__
    return in_short(model, tokens=tokens, mask=mask) | {
        "hook": site.hook_name, "head": site.head, "sae": f"{kind} {_weight(sae)}"}


def in_short(model: TransformerBridge, **tensors: Tensor) -> dict[str, str]:
    """A model and some tensors, as settings of a folder. Models are told apart by the sum of their weights."""
    digests = {name: hashlib.sha256(value.cpu().numpy().tobytes()).hexdigest() for name, value in tensors.items()}
    return {"model": f"{model.cfg.model_name} {_weight(model)}", **digests}


def _weight(module: object) -> float | str:
    if not isinstance(module, torch.nn.Module):
        return ""
    return sum(value.sum(dtype=torch.float64).item() for value in module.parameters())
