"""Every function of lessons 03 to 05 on a model of GPT-2 small's shape: seconds and peak memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tqdm.auto import tqdm

from benchmarks.measuring import GB, alone
from benchmarks.registry import Row, benchmark
from course_utils import ablation, circuits, logit_attribution, path_patching
from course_utils.ablation import hook_z, mlp_out, second_copy_loss
from course_utils.clean_run import CleanRun
from course_utils.model_files import bars_are_off
from course_utils.models import load_model
from course_utils.repeated_tokens import generate_repeated_tokens

LIMIT = 24 * 2**30 / GB     # 24 GiB
MODULES = (ablation, logit_attribution, circuits, path_patching)


class Inputs:
    """A model and what its functions are called with. The path runs from a head of layer 1 to one of the last layer."""

    def __init__(self, name: str, seq_len: int) -> None:
        self.model, self.n = load_model(name), seq_len
        self.one, self.four = (generate_repeated_tokens(self.model, seq_len, batch, seed=0) for batch in (1, 4))
        self.last = self.model.cfg.n_layers - 1

    def circuit(self):
        return circuits.K_comp_full_circuit(self.model, 1, self.last, 0, 0)

    def pieces(self, name: str):
        """A clean run, its final logits, and one of its activations."""
        clean = CleanRun(self.model, self.four, [name])
        return clean, self.model(self.four), clean.activations[name]


# function: (what is made before the clock starts, the call). m, n: the model and seq_len; x: the inputs
Call = Callable[[Inputs], Callable[[], Any]]
