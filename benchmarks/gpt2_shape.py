"""Every function of lessons 03 to 05 on a model of GPT-2 small's shape: seconds and peak memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks.measuring import GB, alone
from benchmarks.registry import Row, benchmark
from course_utils import ablation, circuits, logit_attribution, path_patching
from course_utils.house import bars_are_off
from course_utils.models import load_model
from course_utils.passes import CleanRun, hook_z, mlp_out, parts
from course_utils.repeated_tokens import generate_repeated_tokens

LIMIT = 24 * 2**30 / GB     # 24 GiB
MODULES = (ablation, logit_attribution, circuits, path_patching, parts)


class Inputs:
    """A model and what its functions are called with. The path runs from head 1.0 to head 0 of the last layer."""

    def __init__(self, name: str, seq_len: int) -> None:
        self.m, self.n = load_model(name), seq_len
        self.one, self.four = (generate_repeated_tokens(self.m, seq_len, batch, seed=0) for batch in (1, 4))
        self.last = self.m.cfg.n_layers - 1
        self.clean = CleanRun(self.m, self.four, [hook_z(1), mlp_out(1)])
        self.logits = self.m(self.four)
        self.z, self.mlp = self.clean.activations[hook_z(1)], self.clean.activations[mlp_out(1)]
        self.QK, self.OV = circuits.full_QK_circuit(self.m, self.last, 0), circuits.full_OV_circuit(self.m, 1, 0)

    def loss(self, logits: torch.Tensor) -> torch.Tensor:
        return ablation.second_copy_loss(logits, self.four, self.n)


# one call of each function; x: the inputs
CALLS: dict[str, Callable[[Inputs], Any]] = {
    "nothing": lambda x: None,
    "ablation.second_copy_loss": lambda x: x.loss(x.logits),
    "ablation.mlp_patch_sweep": lambda x: ablation.mlp_patch_sweep(x.m, x.one, x.n),
    "ablation.ablate": lambda x: ablation.ablate(x.z, "mean"),
    "ablation.head_ablation_scores": lambda x: ablation.head_ablation_scores(x.m, x.four, seq_len=x.n),
    "ablation.mlp_ablation_scores": lambda x: ablation.mlp_ablation_scores(x.m, x.four, seq_len=x.n),
    "ablation.mean_loss": lambda x: ablation.mean_loss(x.clean, x.clean.residuals[-1], x.n),
    "ablation.gradients": lambda x: ablation.gradients(x.m, x.four, [mlp_out(0)], x.loss),
    "ablation.mlp_attribution_sweep": lambda x: ablation.mlp_attribution_sweep(x.m, x.four, x.n),
    "ablation.head_attribution_scores": lambda x: ablation.head_attribution_scores(x.m, x.four, seq_len=x.n),
    "logit_attribution.direct_logit_attribution":
        lambda x: logit_attribution.direct_logit_attribution(x.m, x.four),
    "logit_attribution.logit_contributions":
        lambda x: logit_attribution.logit_contributions(x.mlp, torch.ones(4, x.mlp.shape[1], 1), x.m.W_U, x.four),
    "parts.head_weights": lambda x: parts.head_weights(x.m, 1, 0),
    "circuits.full_OV_circuit": lambda x: circuits.full_OV_circuit(x.m, 1, 0),
    "circuits.full_QK_circuit": lambda x: circuits.full_QK_circuit(x.m, x.last, 0),
    "circuits.K_comp_full_circuit": lambda x: circuits.K_comp_full_circuit(x.m, 1, x.last, 0, 0, layer_norm=True),
    "circuits.effective_embedding": lambda x: circuits.effective_embedding(x.m),
    "parts.normalize": lambda x: parts.normalize(x.m, x.m.W_E),
    "circuits.fold_layer_norm": lambda x: circuits.fold_layer_norm(x.m.W_U, x.m.b_U, *torch.ones(2, len(x.m.W_U))),
    "circuits.positional_pattern": lambda x: circuits.positional_pattern(x.m, 1, 0, x.one.shape[1]),
    "circuits.top_k_accuracy": lambda x: circuits.top_k_accuracy(x.QK, best="query"),
    "circuits.copying_score": lambda x: circuits.copying_score(x.OV),
    "circuits.composition_score": lambda x: circuits.composition_score(x.OV, x.QK),
    "circuits.composition_scores": lambda x: circuits.composition_scores(x.m, "K"),
    "circuits.random_head_pairs": lambda x: circuits.random_head_pairs(x.last + 1, x.m.cfg.n_heads, 5),
    "path_patching.path_patching":
        lambda x: path_patching.path_patching(x.m, x.four, x.n, (1, 0), [(x.last, 0)]),
    "path_patching.path_logits":
        lambda x: path_patching.path_logits(x.m, x.four, (1, 0), [(x.last, 0)], restore=True),
    "path_patching.new_readings": lambda x: path_patching.new_readings(x.clean, x.mlp, (x.last, 0), "qkv"),
    "path_patching.head_reading": lambda x: path_patching.head_reading(x.m, 1, 0, "k", x.mlp),
}
NO_WORK = {     # names, checks and single numbers; parts of what is measured; and what only rotary models have
    "ablation": {"replace_head", "check_kind", "check_layers", "some_layers", "check_mlps",
                 "check_zero"},
    "logit_attribution": {"capped"},
    "circuits": {"check_rotary", "rotate", "score_by_distance", "token_vectors", "position_vectors", "visible"},
    "parts": {"key_value_head", "check_head", "centred", "output_scale", "normed_reading", "after_block_0", "gain_of"},
    "path_patching": {"share_of_effect", "check_paths", "check_into", "attention_output", "put_reading"},
}


def prepare(name: str, model: str, seq_len: str) -> Callable[[], Any]:
    x = Inputs(model, int(seq_len))
    return lambda: CALLS[name](x)


@benchmark("gpt2-small-shape")
def gpt2_small_shape(quick: bool = False) -> list[Row]:
    """Every public function of lessons 03 to 05 on random weights of GPT-2 small's shape, each in its own process.

    seq_len 50; batch 4, but 1 for `mlp_patch_sweep`. "nothing" is the loaded model with its inputs, and no call: the
    peak memory of all others begins there. Names, checks and functions that need a rotary model are left out.
    """
    model, seq_len = ("tiny", 6) if quick else ("gpt2-small-random", 50)
    names = ["nothing", "ablation.mlp_patch_sweep"] if quick else list(CALLS)
    costs = {name: alone("benchmarks.gpt2_shape:prepare", name, model, str(seq_len))
             for name in tqdm(names, desc="functions", leave=False, disable=bars_are_off())}
    biggest = max(costs, key=lambda name: costs[name].peak)
    rows = [{"Function": name, "Seconds": f"{cost.seconds:.2f}", "Extra memory (GB)": f"{cost.extra:.2f}",
             "Peak memory (GB)": f"{cost.peak:.2f}"} for name, cost in costs.items()]
    peak, verdict = costs[biggest].peak, "within" if costs[biggest].peak <= LIMIT else "NOT within"
    last = {"Function": f"most: {biggest}", "Seconds": f"{sum(cost.seconds for cost in costs.values()):.2f} in all",
            "Extra memory (GB)": "", "Peak memory (GB)": f"{peak:.2f}, {verdict} 24 GiB ({LIMIT:.2f})"}
    return [*rows, last]
