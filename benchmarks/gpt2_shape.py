"""Functions of lessons 03 to 05, and the long ones after them, on GPT-2 small's shape: seconds and peak memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.measuring import GB, alone
from benchmarks.registry import Row, benchmark
from course_utils import ablation, circuits, logit_attribution, path_patching
from course_utils.attribution_graphs import attribution_graph
from course_utils.baselines import noise_floor
from course_utils.edges import attribution_scores, exact_scores
from course_utils.faithfulness import evaluate_sae
from course_utils.house import bars_are_off
from course_utils.models import as_bridge, best_device, bos_token_id, load_model
from course_utils.models.local import random_gpt2_small
from course_utils.passes import CleanRun, hook_z, mlp_out, parts
from course_utils.probes import logistic_probe, sparse_probe
from course_utils.repeated_tokens import generate_repeated_tokens
from course_utils.report_card import report_card
from course_utils.sae import SparseAutoencoder
from course_utils.transcoders import Transcoder

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


# one call of each of the long functions; given a model and a number of tokens
D_SAE, WIDE, K = 24_576, 65_536, 48
LONG: dict[str, Callable[[Any, int], Any]] = {
    "faithfulness.evaluate_sae": lambda m, n: evaluate_sae(m, sae_for(m), text(m, n), batch_size=1),
    "faithfulness.evaluate_sae, 4 texts": lambda m, n: evaluate_sae(m, sae_for(m), texts(m, n, 4), batch_size=1),
    "faithfulness.evaluate_sae, 4 at a time, 65,536 latents":
        lambda m, n: evaluate_sae(m, sae_for(m, WIDE), texts(m, n, 4), batch_size=4),
    "baselines.noise_floor": lambda m, n: noise_floor(m, sae_for(m), text(m, n), draws=1, batch_size=1),
    "report_card.report_card":
        lambda m, n: report_card(m, sae_for(m), text=text(m, n), seq_len=n // 16, batch=4, draws=1, batch_size=1),
    "edges.attribution_scores": lambda m, n: attribution_scores(m, text(m, n // 4), text(m, n // 4, 1), difference),
    "edges.attribution_scores, 1,024 tokens":
        lambda m, n: attribution_scores(m, text(m, n), text(m, n, 1), difference),
    "edges.exact_scores": lambda m, n: exact_scores(m, text(m, n // 64), other_end(text(m, n // 64)), difference),
    "probes.logistic_probe": lambda m, n: logistic_probe(torch.randn(10 * n, m.cfg.d_model), torch.rand(10 * n) < 0.5),
    "probes.sparse_probe": lambda m, n: sparse_probe(torch.randn(2 * n, D_SAE).relu(), torch.rand(2 * n) < 0.5, 16),
    "attribution_graphs.attribution_graph": lambda m, n: attribution_graph(
        m, {layer: transcoder_for(m, layer) for layer in range(m.cfg.n_layers)}, text(m, n // 64)[0]),
}


def text(model: Any, n: int, seed: int = 0) -> torch.Tensor:
    """BOS and random tokens, [1, n]."""
    tokens = torch.randint(10, model.cfg.d_vocab - 1, (1, n), generator=torch.Generator().manual_seed(seed))
    tokens[:, 0] = bos_token_id(model)
    return tokens


def texts(model: Any, n: int, number: int) -> torch.Tensor:
    return torch.cat([text(model, n, seed) for seed in range(number)])


def other_end(tokens: torch.Tensor) -> torch.Tensor:
    """The same with another last token."""
    return torch.cat([tokens[:, :-1], tokens[:, -1:] % 7 + 1], dim=1)


def difference(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, -1, 5] - logits[:, -1, 7]


def sae_for(model: Any, d_sae: int | None = None) -> SparseAutoencoder:
    return SparseAutoencoder(model.cfg.d_model, d_sae or D_SAE, "topk", k=K, model_name=model.cfg.model_name,
                             hook_name=f"blocks.{model.cfg.n_layers // 2}.hook_resid_pre").requires_grad_(False)


def transcoder_for(model: Any, layer: int) -> Transcoder:
    return Transcoder(model.cfg.d_model, 4 * model.cfg.d_model, "topk", k=8, seed=layer).requires_grad_(False)


def gpt2_medium() -> Any:
    """GPT-2 medium's shape, random weights."""
    _, tokenizer = random_gpt2_small(0)
    return as_bridge(GPT2LMHeadModel(GPT2Config(n_embd=1024, n_layer=24, n_head=16)), tokenizer, name="gpt2-medium",
                     device=best_device())


def prepare_long(name: str, model: str, n: str) -> Callable[[], Any]:
    loaded = gpt2_medium() if model == "gpt2-medium" else load_model(model)
    return lambda: LONG[name](loaded, int(n))


def prepare(name: str, model: str, seq_len: str) -> Callable[[], Any]:
    x = Inputs(model, int(seq_len))
    return lambda: CALLS[name](x)


@benchmark("gpt2-small-shape")
def gpt2_small_shape(quick: bool = False) -> list[Row]:
    """Functions on random weights of GPT-2 small's shape, each in its own process: all public ones of lessons 03 to 05.

    seq_len 50; batch 4, but 1 for `mlp_patch_sweep`. "nothing" is the loaded model with its inputs, and no call: the
    peak memory of all others begins there. Names, checks and functions that need a rotary model are left out.

    After them come the long functions of later lessons: an autoencoder of 24,576 latents on one text of 1,024 tokens,
    if nothing else is said, `attribution_scores` on 256, `exact_scores` of all edges on 16 of which the last differs,
    probes of 10,240 activations and of 2,048 positions' latents, an attribution graph of 16 tokens with 3,072 features
    a layer. At last, GPT-2 medium's shape.
    """
    model, seq_len = ("tiny", 6) if quick else ("gpt2-small-random", 50)
    names = ["nothing", "ablation.mlp_patch_sweep"] if quick else list(CALLS)
    costs = {name: alone("benchmarks.gpt2_shape:prepare", name, model, str(seq_len))
             for name in tqdm(names, desc="functions", leave=False, disable=bars_are_off())}
    long = {} if quick else {name: alone("benchmarks.gpt2_shape:prepare_long", name, model, "1024")
                             for name in tqdm(LONG, desc="long ones", leave=False, disable=bars_are_off())}
    costs |= long
    if not quick:
        name = "faithfulness.evaluate_sae, 4 texts"
        costs[f"{name}, GPT-2 medium"] = alone("benchmarks.gpt2_shape:prepare_long", name, "gpt2-medium", "1024")
    biggest = max(costs, key=lambda name: costs[name].peak)
    rows = [{"Function": name, "Seconds": f"{cost.seconds:.2f}", "Extra memory (GB)": f"{cost.extra:.2f}",
             "Peak memory (GB)": f"{cost.peak:.2f}"} for name, cost in costs.items()]
    peak, verdict = costs[biggest].peak, "within" if costs[biggest].peak <= LIMIT else "NOT within"
    last = {"Function": f"most: {biggest}", "Seconds": f"{sum(cost.seconds for cost in costs.values()):.2f} in all",
            "Extra memory (GB)": "", "Peak memory (GB)": f"{peak:.2f}, {verdict} 24 GiB ({LIMIT:.2f})"}
    return [*rows, last]
