"""Exercises of lesson 06: sparse autoencoders."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from course_utils import latents, sae
from course_utils.exercises.calling import call
from course_utils.exercises.checking import (
    Case,
    CompareCases,
    CompareThenState,
    Exercise,
    compare_cases,
    or_raised,
    property_check,
    require,
)
from course_utils.exercises.checks.shared import drawn, shown
from course_utils.exercises.comparing import describe
from course_utils.exercises.mistakes import seen, variants
from course_utils.latents import auc as fast_auc
from course_utils.latents import dead_latents, top_activations
from course_utils.probes import sparse_probe
from course_utils.sae import SparseAutoencoder

# --- the course's answers; `SparseAutoencoder` and `latents` have their own versions --------------------------


def encode(
    x: Float[Tensor, "... d_in"], W_enc: Float[Tensor, "d_in d_sae"], b_enc: Float[Tensor, "d_sae"],
    b_dec: Float[Tensor, "d_in"],
) -> Float[Tensor, "... d_sae"]:
    """The latents of a ReLU autoencoder: relu((x − b_dec) W_enc + b_enc)."""
    return ((x - b_dec) @ W_enc + b_enc).relu()


def sae_loss(
    x: Float[Tensor, "tokens d_in"], x_hat: Float[Tensor, "tokens d_in"],
    latents: Float[Tensor, "tokens d_sae"], sparsity: float,
) -> Float[Tensor, ""]:
    """Mean over tokens of the squared error (summed over components) plus sparsity times Σ|f|."""
    error = (x_hat - x).pow(2).sum(dim=1)                               # [tokens]
    penalty = latents.abs().sum(dim=1)
    return (error + sparsity * penalty).mean()


def reconstruct_rescaled(x: Float[Tensor, "tokens d_in"], autoencoder) -> Float[Tensor, "tokens d_in"]:
    """The reconstruction of x by an autoencoder that was made for activations of norm √d_in.

    `autoencoder(y)` reconstructs activations y [tokens, d_in].
    """
    scale = x.norm(dim=1, keepdim=True) / x.shape[1] ** 0.5
    return autoencoder(x / scale) * scale


def top_k(pre: Float[Tensor, "... d_sae"], k: int) -> Float[Tensor, "... d_sae"]:
    """The k largest entries of each row, those of them that are positive; 0 elsewhere."""
    values, indices = pre.topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, indices, values.relu())


def topk_step(sae, optimizer, x: Float[Tensor, "tokens d_in"]) -> float:
    """One step of training a TopK autoencoder. Returns the loss before the step."""
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    x_hat = top_k(pre, sae.k) @ sae.W_dec + sae.b_dec
    loss = (x_hat - x).pow(2).sum(dim=1).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
    return loss.item()


def gated(
    pre: Float[Tensor, "... d_sae"], b_gate: Float[Tensor, "d_sae"], b_mag: Float[Tensor, "d_sae"],
    r_mag: Float[Tensor, "d_sae"],
) -> Float[Tensor, "... d_sae"]:
    """The latents of a gated autoencoder, from its pre-activations (x − b_dec) W_enc."""
    gate = pre + b_gate > 0
    magnitude = (pre * r_mag.exp() + b_mag).relu()
    return gate * magnitude


def auc(latents: Float[Tensor, "m d_sae"], labels: Bool[Tensor, "m"]) -> Float[Tensor, "d_sae"]:
    """For each latent: P(f₊ > f₋) + ½ P(f₊ = f₋) for a random labelled and a random other position."""
    yes, no = latents[labels][:, None], latents[~labels][None]          # [labelled, 1, d_sae], [1, others, d_sae]
    won = (yes > no).float() + (yes == no).float() / 2                  # by pair of positions
    return won.mean(dim=(0, 1))


def luck(
    latent: Float[Tensor, "n pos"], labels: Bool[Tensor, "n pos"], known: Bool[Tensor, "n pos"], draws: int,
    rng: torch.Generator,
) -> Float[Tensor, "draws"]:
    """The AUC of a latent for the labels of other texts, in which nothing but the place in the text can help."""
    found = []
    for _ in range(draws):
        order = torch.randperm(len(labels), generator=rng)              # whose labels each text gets
        asked = known[order]
        found.append(fast_auc(latent[asked][:, None], labels[order][asked]))
    return torch.cat(found)


# --- inputs ---------------------------------------------------------------------------------------------------


class KeepsDouble(CompareCases):
    """float64 in, float64 out: the lesson trains in float64, and stops where dtypes are mixed."""

    def _difference(self, got: Any, expected: Any) -> str | None:
        narrow = isinstance(got, Tensor) and got.is_floating_point() and got.dtype != torch.float64
        if expected.dtype == torch.float64 and narrow:
            return f"float64 came in and {str(got.dtype).removeprefix('torch.')} goes out: leave the dtype as it is"
        return super()._difference(got, expected)


def encode_cases() -> list[Case]:
    """The training loop of the lesson takes the gradient of each of the three parameters."""
    x, W_enc, b_enc, b_dec = drawn(4, 5), drawn(5, 8, seed=1), drawn(8, seed=2), drawn(5, seed=3)
    each = {"W_enc": (x, W_enc.clone().requires_grad_(), b_enc, b_dec),
            "b_enc": (x, W_enc, b_enc.clone().requires_grad_(), b_dec),
            "b_dec": (x, W_enc, b_enc, b_dec.clone().requires_grad_())}
    return [
        *(Case(*values, label=f"4 tokens, 5 -> 8, a gradient for {name}") for name, values in each.items()),
        Case(drawn(2, 3, 4, seed=4), drawn(4, 6, seed=5), drawn(6, seed=6), drawn(4, seed=7),
             label="[2, 3, 4], 4 -> 6"),
        Case(*(value.double() for value in (x, W_enc, b_enc, b_dec)), label="in float64, as in the training below"),
    ]


def loss_cases() -> list[Case]:
    x, x_hat, latents = drawn(3, 5), drawn(3, 5, seed=1), drawn(3, 8, seed=2)       # some latents are below 0
    return [
        Case(x, x_hat.clone().requires_grad_(), latents, 2.0, label="3 tokens, a gradient for x_hat"),
        Case(x, x_hat, latents.clone().requires_grad_(), 0.5, label="3 tokens, a gradient for the latents"),
        Case(drawn(7, 4, seed=3), drawn(7, 4, seed=4), drawn(7, 6, seed=5), 3.0, label="7 tokens, 4 -> 6"),
        Case(x.double(), x_hat.double(), latents.double(), 1.5, label="3 tokens in float64"),
    ]


def small_autoencoder(d_in: int, d_sae: int, seed: int) -> SparseAutoencoder:
    """Random, with biases: it treats a vector and its double differently."""
    sae = SparseAutoencoder(d_in, d_sae, seed=seed).requires_grad_(False)
    sae.b_dec.copy_(drawn(d_in, seed=seed + 1))
    sae.b_enc.copy_(drawn(d_sae, seed=seed + 2))
    return sae


def rescale_cases() -> list[Case]:
    """Norms between about 3 and 60."""
    sizes = torch.tensor([[2.0], [20.0], [7.0], [1.0], [12.0]])
    return [Case(drawn(5, 6) * sizes, small_autoencoder(6, 12, seed=1), label="5 tokens of 6 numbers"),
            Case(drawn(3, 9, seed=4) * sizes[:3], small_autoencoder(9, 10, seed=5),
                 label="3 tokens of 9 numbers")]


def top_k_cases() -> list[Case]:
    tied = torch.tensor(
        [[3.0, 2.0, 2.0, -1.0, 2.0, 0.5], [1.0, 4.0, 1.0, 1.0, 1.0, -2.0], [0.2, 0.3, 9.0, 8.0, 7.0, 6.0]])
    return [
        Case(drawn(4, 6), 2, label="[4, 6], k = 2"),
        Case(drawn(6, 7, seed=1), 5, label="[6, 7], k = 5: some of the largest are negative"),
        Case(drawn(3, 4, 6, seed=2), 3, label="[3, 4, 6], k = 3"),
        Case(tied, 3, label="equal entries at the end of the k: any of them will do"),
    ]


def step_cases() -> list[Case]:
    first, second = SparseAutoencoder(5, 12, "topk", k=3, seed=1), SparseAutoencoder(8, 10, "topk", k=2, seed=2)
    for each in (first, second):
        each.b_dec.data += drawn(each.d_in) / 2
        each.b_enc.data += drawn(each.d_sae) / 5
    return [Case(first, "Adam", drawn(3, 20, 5), label="three steps, 5 -> 12, k = 3"),
            Case(second.double(), "Adam", drawn(3, 9, 8, seed=3).double() + 1,
                 label="three steps, 8 -> 10, k = 2, in float64, as in the training below")]


class AfterSteps(CompareCases):
    """Takes a step with each batch of a case, and compares the losses and the weights at the end."""

    def _run(self, function: Callable, case: Case) -> Any:
        sae = copy.deepcopy(case.args[0])
        optimizer = torch.optim.Adam(sae.parameters(), lr=0.01)
        losses = [call(function, (sae, optimizer, x.clone())) for x in case.args[2]]
        weights = {name: value.detach().clone() for name, value in sae.named_parameters()}
        return {"loss of each step": losses} | weights


def gated_cases() -> list[Case]:
    pre, b_gate, b_mag, r_mag = drawn(9, 5), drawn(5, seed=1), drawn(5, seed=2) + 0.5, drawn(5, seed=3)
    pre[0] = -b_gate                                                    # pre + b_gate is exactly 0: off
    return [Case(pre, b_gate, b_mag, r_mag, label="[9, 5]; in the first row pre + b_gate is 0"),
            Case(drawn(2, 4, 7, seed=4), drawn(7, seed=5), drawn(7, seed=6), drawn(7, seed=7),
                 label="[2, 4, 7]")]


def dead_cases() -> list[Case]:
    latents, mask = torch.zeros(3, 4, 8), torch.ones(3, 4, dtype=torch.bool)
    mask[:, 0] = mask[2, 3] = False
    latents[..., 0] = drawn(3, 4).abs()                                 # active everywhere; latent 1 nowhere
    latents[1, 0, 2] = latents[2, 3, 2] = 5.0                           # only where the mask does not count
    latents[1, 2, 3] = 2.0                                              # at one place
    latents[..., 4] = 3.0                                               # the same everywhere: alive
    latents[1, 3, 5] = 4.0                                              # in one sequence only
    latents[0, 2, 6] = 1e-9                                             # hardly, but active
    latents[:, 1, 7] = 3.0                                              # once in every sequence
    sparse, some = drawn(4, 5, 9, seed=1), drawn(4, 5, seed=2) > 0
    sparse = sparse * (sparse > 1.9)
    return [Case(latents, mask, label="8 latents, each with its own story"),
            Case(sparse, some, label="[4, 5, 9], mask at random")]


def strongest_cases() -> list[Case]:
    few = 0.2 * (drawn(6, 5, seed=1).abs() - 0.3).relu()                # active, and far below 1
    few[[1, 4]] = 0                                                     # nowhere active in these
    clustered = drawn(8, 6, seed=2).relu()
    clustered[2] += 2                                                   # the largest of all are in one sequence
    signed = drawn(7, 6, seed=4) - 0.5
    signed[2] = -signed[2].abs() - 3                                    # below 0, and far from it
    return [Case(clustered, 3, label="8 sequences, k = 3, the largest all in one"),
            Case(few, 5, label="6 sequences, two of them without the latent, k = 5"),
            Case(drawn(7, 6, seed=3).relu(), 2, label="7 sequences, k = 2"),
            Case(signed, 7, label="7 sequences, some values below 0"),
            Case(drawn(3, 4, seed=5).relu() + 1, 9, label="3 sequences, k = 9"),
            Case(torch.zeros(4, 5), 2, label="a latent that is active nowhere")]


def auc_cases() -> list[Case]:
    labels = drawn(30, seed=1) > 0
    sparse = (drawn(30, 6, seed=2) + 0.5 * labels[:, None] - 0.7).relu()            # mostly 0: mostly ties
    sparse[:, 0] = 0                                                    # knows nothing: ½
    sparse[:, 1] = labels * (1 + drawn(30, seed=3).abs())               # perfect: 1
    sparse[:, 2] = ~labels * (1 + drawn(30, seed=4).abs())              # perfect upside down: 0
    return [Case(sparse, labels, label="30 positions, 6 sparse latents"),
            Case(drawn(12, 1, seed=5), drawn(12, seed=6) > 0.5, label="12 positions, 1 dense latent"),
            Case(drawn(20, 2, seed=7).round(), drawn(20, seed=8) > -0.3, label="20 positions, many ties")]


# --- known mistakes -------------------------------------------------------------------------------------------

ENCODE_MISTAKES = variants(encode, {
    "b_dec is not subtracted from x": {"(x - b_dec)": "x"},
    "b_dec is added: the decoder adds it, so the encoder subtracts it": {"x - b_dec": "x + b_dec"},
    "b_enc is left out": {"@ W_enc + b_enc": "@ W_enc"},
    "these are the pre-activations: relu sets the negative ones to 0": {".relu()": ""},
    "relu comes too early: add b_enc first": "((x - b_dec) @ W_enc).relu() + b_enc",
})


LOSS_MISTAKES = variants(sae_loss, {
    "divided by the number of tokens twice: `mean` has done it once":
        ("(error / len(x) + sparsity * penalty).mean()", "(error + sparsity * penalty).mean() / len(x)"),
    "averaged over components or latents too: sum over those, take the mean over tokens only":
        ({"pow(2).sum": "pow(2).mean"}, {"abs().sum": "abs().mean"}, {").sum(": ").mean("}),
    "this is the norm of the error: the loss has its square": {"pow(2).sum(dim=1)": "norm(dim=1)"},
    "this is the sum of |error|: square each component instead": {"pow(2)": "abs()"},
    "the latents are summed with their signs: the penalty is the sum of |f|": {"latents.abs()": "latents"},
    "this counts the active latents, which has no gradient: the penalty is the sum of |f|":
        {"latents.abs()": "(latents != 0).float()"},
    "the latents are squared: the penalty is the sum of |f|": {"latents.abs()": "latents.pow(2)"},
    "summed over tokens: take the mean":
        ({".mean()": ".sum()"}, "error.sum() + sparsity * penalty.mean()", "error.mean() + sparsity * penalty.sum()"),
    "`sparsity` is left out: it multiplies the sum of |f|": {"sparsity * penalty": "penalty"},
    "the penalty is left out": "error.mean()",
    "`sparsity` multiplies the error too: only the sum of |f|": "sparsity * (error + penalty).mean()",
})


NORM = "x.norm(dim=1, keepdim=True)"                                    # a part of the solution
RESCALE_MISTAKES = variants(reconstruct_rescaled, {
    "the answer is still scaled, and x is not: multiply by the scale that you divided by": "autoencoder(x / scale)",
    "the autoencoder sees x as it is: divide each x by ‖x‖ / √d_in first": ("autoencoder(x)", "autoencoder(x) * scale"),
    "rescaled to norm 1: the autoencoder was made for norm √d_in": {" / x.shape[1] ** 0.5": ""},
    "the wrong way round: divide by the scale first and multiply at the end": "autoencoder(x * scale) / scale",
    "one scale for all tokens: each is rescaled by its own norm":
        ({NORM: "x.norm() / len(x) ** 0.5"}, {NORM: f"{NORM}.mean()"}, {NORM: "x.norm()"}),
    "multiplied by ‖x‖: multiply by the number that you divided by, ‖x‖ / √d_in": {"* scale": f"* {NORM}"},
    "√d_in is the root of the number of components, x.shape[1], whatever the number of tokens or this model's width":
        ({"x.shape[1]": "len(x)"}, {"x.shape[1]": "256"}),
    "the norm is taken over tokens: it is that of each x, over its components (dim=1)":
        ({NORM: "x.norm(dim=0)"}, {f"{NORM} / x.shape[1]": "x.norm(dim=0) / len(x)"}),
    "the reconstruction is stretched to the norm of x, which hides that it was too long or too short: "
    "multiply by the scale that you divided by": f"F.normalize(autoencoder(x / scale), dim=1) * {NORM}",
    "the mean is subtracted too: that is layer norm, and here only the norm changes": tuple(
        f"""mean, spread = x.mean(dim=1, keepdim=True), x.std(dim=1, keepdim=True, unbiased={unbiased})
return autoencoder((x - mean) / spread) * spread + mean""" for unbiased in (False, True)),
})


class AnyOfEqual(CompareCases):
    """Where the right answer holds equal values, which of several equal entries was kept does not matter."""

    def _difference(self, got, expected):
        first = super()._difference(got, expected)
        kept = expected[expected != 0]
        if first is None or got.shape != expected.shape or len(kept.unique()) == len(kept):
            return first
        if got.dtype.is_complex or got.layout != expected.layout or got.device != expected.device:
            return first
        return super()._difference(got.sort(dim=-1).values, expected.sort(dim=-1).values) and first


BY_SIZE = {"values, indices = pre.topk(k, dim=-1)":
           "indices = pre.abs().topk(k, dim=-1).indices\nvalues = pre.gather(-1, indices)"}
TOP_K_MISTAKES = variants(top_k, {
    "negative entries are kept: of the k largest only the positive ones stay": {"values.relu()": "values"},
    "the k largest are taken along another axis: each row has its own k, along the last axis":
        tuple({"dim=-1": f"dim={dim}", "scatter(-1": f"scatter({dim}"} for dim in (0, 1, -2)),
    "these are the largest of the whole tensor: each row has its own k":
        ("top_k(pre.flatten(), k).view_as(pre)", "top_k(pre.flatten(), k * pre[..., 0].numel()).view_as(pre)"),
    "chosen by size, without the sign: a large negative entry is not among the k largest":
        (BY_SIZE, BY_SIZE | {"values.relu()": "values"}, BY_SIZE | {"values.relu()": "values.abs()"}),
    "entries equal to the k-th largest are all kept: no more than k may stay": "pre.relu() * (pre >= values[..., -1:])",
    "the k-th largest itself is lost": "pre.relu() * (pre > values[..., -1:])",
    "these are the k smallest": {"dim=-1": "dim=-1, largest=False"},
    "these are ones: keep the values":
        ({"values.relu()": "(values > 0).float()"}, {"values.relu()": "torch.ones_like(values)"}),
    "one too many or too few: k entries stay in each row":
        ({"pre.topk(k": "pre.topk(k + 1"}, {"pre.topk(k": "pre.topk(k - 1"}),
    "these are the k values alone: put each back in its place, with 0 elsewhere":
        seen(lambda got, expected: got.ndim == expected.ndim and got.shape[-1] < expected.shape[-1]),
})


STEP_MISTAKES = variants(topk_step, {
    "the rows of W_dec are not scaled back to norm 1 after the step":
        {"sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)": "pass"},
    "these are the columns: each row of W_dec is one latent's direction, and has norm 1": {"norm(dim=1": "norm(dim=0"},
    "gradients of earlier steps are still there: `zero_grad()` clears them": {"optimizer.zero_grad()": "pass"},
    "the weights do not move: first `zero_grad()`, then `backward()`, then `step()`":
        ({"optimizer.step()": "pass"},
         {"optimizer.zero_grad()": "pass", "loss.backward()": "loss.backward()\noptimizer.zero_grad()"}),
    "this is relu: k says how many latents of a token are active": {"top_k(pre, sae.k)": "pre.relu()"},
    "a penalty is added: TopK needs none":
        {"loss = (x_hat - x).pow(2).sum(dim=1).mean()":
         "loss = (x_hat - x).pow(2).sum(dim=1).mean() + top_k(pre, sae.k).sum(dim=1).mean()"},
    "averaged over components too: sum over those, take the mean over tokens": {"sum(dim=1).mean()": "mean()"},
    "b_dec is not subtracted from x before the encoder": {"(x - sae.b_dec)": "x"},
    "b_dec is not added after the decoder": {"@ sae.W_dec + sae.b_dec": "@ sae.W_dec"},
    "this is the loss after the step": "(top_k((x - sae.b_dec) @ sae.W_enc + sae.b_enc, sae.k) @ sae.W_dec + sae.b_dec "
                                       "- x).pow(2).sum(dim=1).mean().item()",
})


GATED_MISTAKES = variants(gated, {
    "b_gate is used in both: the bias of the magnitude is b_mag": {"r_mag.exp() + b_mag": "r_mag.exp() + b_gate"},
    "there is no separate gate: it is 1 where pre + b_gate > 0, whatever the magnitude": "magnitude",
    "b_mag is used in both: the bias of the gate is b_gate": {"pre + b_gate": "pre + b_mag"},
    "the gate is not 0 or 1: it is 1 where pre + b_gate is above 0, else 0":
        ({"pre + b_gate > 0": "(pre + b_gate).sigmoid()"}, {"pre + b_gate > 0": "(pre + b_gate).relu()"}),
    "a gate exactly at 0 is open: pre + b_gate must be above 0": {"b_gate > 0": "b_gate >= 0"},
    "the exponential is forgotten: the scale is exp(r_mag)": {"r_mag.exp()": "r_mag"},
    "b_mag is scaled too: it is added after the scale": {"pre * r_mag.exp() + b_mag": "(pre + b_mag) * r_mag.exp()"},
    "the scale is left out: multiply pre by exp(r_mag)": {" * r_mag.exp()": ""},
    "relu is forgotten: a magnitude is not negative": {".relu()": ""},
    "this is the gate alone: multiply by the magnitude": "gate.float()",
    "b_gate and b_mag are swapped": {"pre + b_gate": "pre + b_mag", "r_mag.exp() + b_mag": "r_mag.exp() + b_gate"},
    "b_gate is subtracted: the gate is open where pre + b_gate > 0": {"pre + b_gate": "pre - b_gate"},
    "this is the magnitude without a bias: add b_mag": {"r_mag.exp() + b_mag": "r_mag.exp()"},
})


DEAD_MISTAKES = variants(dead_latents, {
    "positions that the mask leaves out are counted": {" & mask[..., None]": ""},
    "the mask is inverted: True marks the positions that count": {"& mask": "& ~mask"},
    "these are the latents that are alive: dead is the opposite": {"~(": "("},
    "this is True where a latent is 0 at some position: it must be 0 at every one":
        {"~((latents != 0)": "((latents == 0)"},
    "this is True where a latent is silent in some sequence: it must be in all":
        "((latents == 0) | ~mask[..., None]).all(dim=1).any(dim=0)",
    "positions that the mask leaves out make every latent look alive":
        "((latents == 0) & mask[..., None]).all(dim=1).all(dim=0)",
    "this is an answer for each sequence: a latent is dead if it is 0 in all of them":
        seen(lambda got, expected: got.ndim == 2 and got.shape[-1] == expected.shape[-1]),
})


STRONGEST_MISTAKES = variants(top_activations, {
    "the k largest places are taken first, and then one in each sequence: take the largest of each sequence first":
        """places = latent.flatten().topk(min(k, latent.numel())).indices.tolist()
first = {}
for place in places:
    if latent.flatten()[place] > 0:
        first.setdefault(place // latent.shape[1], place % latent.shape[1])
return torch.tensor([*first.items()]).reshape(-1, 2)""",
    "several come from one sequence: at most one in each":
        """places = latent.flatten().topk(min(k, latent.numel())).indices
places = places[latent.flatten()[places] > 0]
return torch.stack([places // latent.shape[1], places % latent.shape[1]], dim=1)""",
    "the smallest come first": {"> 0]": "> 0].flip(0)"},
    "these are the weakest sequences: the largest values come first":
        {"descending=True, stable=True)[:k]": "stable=True)", "> 0]": "> 0][:k]"},
    "the columns are swapped: first the sequence, then the position":
        {"[sequences, positions[sequences]]": "[positions[sequences], sequences]"},
    "places where the latent is not active are among them: leave them out":
        {"sequences = sequences[largest[sequences] > 0]": "pass"},
    "chosen by size, without the sign: a value below 0 is not active":
        {"latent.max(dim=1)": "latent.abs().max(dim=1)"},
    "there are more than k": {"[:k]": ""},
    "these are in the order of the text: the largest value comes first": {"> 0]": "> 0].sort().values"},
    "sequences are ranked by their mean or sum: the largest value decides":
        {"largest.argsort": "latent.mean(dim=1).argsort"},
    "one number for each place: give two, the sequence and the position":
        seen(lambda got, expected: got.ndim == 1),
    "these are rows for sequence and position: each place is a row, [k, 2]": {"]], dim=1": "]], dim=0"},
})


AUC_MISTAKES = variants(auc, {
    "a tie counts as lost: it counts half": {" + (yes == no).float() / 2": ""},
    "a tie counts as won: it counts half": {"(yes == no).float() / 2": "(yes == no).float()"},
    "inverted: an AUC is how often a labelled position has the larger value": {"yes > no": "yes < no"},
    "only whether the latent is active counts here: compare how large it is":
        ({"yes, no =": "latents = latents > 0\nyes, no ="}, {"yes, no =": "latents = latents != 0\nyes, no ="}),
    "this is the accuracy of one threshold, 0: compare pairs of positions instead":
        "((latents > 0) == labels[:, None]).float().mean(dim=0)",
    "this is a difference of means: count the pairs in which the labelled one is larger":
        "latents[labels].mean(dim=0) - latents[~labels].mean(dim=0)",
    "each labelled position is compared with all: compare it only with those without the label":
        {"latents[~labels]": "latents"},
    "this is the number of pairs: divide by how many there are": "won.sum(dim=(0, 1))",
    "an AUC below ½ is flipped: let it stand, a 0 is a perfect answer upside down":
        "(won.mean(dim=(0, 1)) - 0.5).abs() + 0.5",
    "equal values get different ranks: each should have the mean of their ranks":
        {"yes, no =": "latents = latents.argsort(dim=0).argsort(dim=0)\nyes, no ="},
})


# --- what a comparison cannot state; experiments: what must be true of their results ---------------------------

NOT_DOUBLE = "float64 came in: leave the dtype as it is (`torch.zeros_like(pre)`), for the training below is in float64"


@property_check(mistakes=[NOT_DOUBLE])
def keeps_double(attempt):
    """float64 in, float64 out, as in the training below"""
    pre = drawn(5, 6, seed=3).double()
    got = or_raised(attempt, RuntimeError, pre.clone(), 2)              # torch's, where dtypes are mixed
    require(isinstance(got, Tensor) and got.dtype == torch.float64, NOT_DOUBLE, input=f"pre = {describe(pre)}\nk = 2",
            got=shown(got), expected=top_k(pre, 2))


NOT_SHUFFLED = "these are the latent's AUCs for its own text: give each text the labels of another one"
BY_POSITION = ("shuffled position by position: labels hold for stretches and depend on the place in the text, which "
               "luck may use, too. Shuffle whole texts")
KNOWN_STAYS = "a text gets another one's labels, but not its `known`: the two belong together"
SHAPE = "one AUC for each draw was expected: a tensor [draws]"
FLIPPED = "an AUC below ½ is flipped: let it stand"
NOT_FROM_RNG = "the draws do not come from `rng`: with `generator=rng` they can be drawn again"


@property_check(mistakes=[NOT_SHUFFLED, BY_POSITION, KNOWN_STAYS, SHAPE, FLIPPED, NOT_FROM_RNG])
def luck_states(attempt):
    """a latent that knows the text, one that knows the place alone, and questions that have no answer at some places"""
    n, pos, draws = 40, 30, 60
    everywhere, place = torch.ones(n, pos, dtype=torch.bool), torch.arange(pos).expand(n, pos)
    ends = 3 + torch.arange(n)[:, None] % 8                             # where the first sentence ends

    def asked(latent, labels, known, seed=0):
        got = attempt(latent.clone(), labels.clone(), known.clone(), draws, torch.Generator().manual_seed(seed))
        require(isinstance(got, Tensor) and got.shape == (draws,), SHAPE, got=got, expected=f"shape [{draws}]")
        return got.detach().double()

    text = (drawn(n, seed=2) > 0)[:, None].expand(n, pos)               # holds in half of the texts, all through
    got = asked(text + 0.1 * drawn(n, pos), text, everywhere)
    case = "labels: True all through half of the texts; latent: the label and a little noise"
    require((got < 0.9).all(), NOT_SHUFFLED, input=case, got=got, expected="values about 0.5")
    require(got.min() < 0.47, FLIPPED, input=case, got=got, expected="values on both sides of 0.5")
    require(got.std() > 0.04 and abs(got.mean() - 0.5) < 0.1, BY_POSITION, input=case, got=got,
            expected="mean about 0.5, standard deviation about 0.1: there are only 40 texts")
    again = asked(text + 0.1 * drawn(n, pos), text, everywhere, seed=1)
    require(not torch.equal(got, again), NOT_FROM_RNG, input=case, got="the same for two generators")
    got = asked((place < 6) + 0.1 * drawn(n, pos, seed=1), place < ends, everywhere)
    case = "labels: True in the first 3 to 10 positions; latent: large in the first 6, whatever the text"
    require(got.mean() > 0.8, BY_POSITION, input=case, got=got, expected="about 0.9: the place alone says as much")
    known = place < ends + 4
    got = asked(place.float(), (place >= 2) & known, known)
    case = "known: the first 7 to 14 positions; labels: True from position 2 on, where known; latent: the position"
    require((got > 0.999).all(), KNOWN_STAYS, input=case, got=got, expected="1 in every draw")


TOO_MANY = "more than k latents are used"
POOR = ("on new positions this tells less than k latents can: choose those whose means at labelled and other positions "
        "differ most, upwards or downwards, and weigh them")
FAINT = ("where the latents that know are large, this tells less than k latents can: a weight in a regression on all "
         "of them depends on a latent's unit, and faint ones get large weights. Choose first, then weigh the chosen")


@property_check(mistakes=[TOO_MANY, POOR, FAINT])
def probe_states(attempt):
    """facts spread over several latents, large or faint, some of them active where it does not hold; new positions"""

    def planted(seed, size):
        labels = drawn(3000, seed=seed) > 0.5
        chance = 0.02 + 0.3 * labels[:, None] * torch.ones(6)
        chance[:, 4:] = 0.02 + 0.3 * ~labels[:, None]                   # two are active where the fact does not hold
        strength = size * torch.tensor([1.0, 3, 1, 2, 1, 2])
        uniform = torch.rand(3000, 6, generator=torch.Generator().manual_seed(seed))
        dense = 10 + 4 * drawn(3000, 3, seed=seed + 1)                  # large, and know nothing
        return torch.cat([(uniform < chance) * strength, dense, drawn(3000, 21, seed=seed + 2).relu()], dim=1), labels

    for size, k, poor in ((1, 6, POOR), (1, 1, POOR), (1, 3, POOR), (30, 6, FAINT)):
        (seen_latents, seen_labels), (new_latents, new_labels) = planted(1, size), planted(5, size)
        got = attempt(seen_latents.clone(), seen_labels.clone(), k)
        used = int((torch.as_tensor(got) != 0).sum())
        case = f"30 latents, 6 of which go with the fact and are {size} times as large; k = {k}"
        require(used <= k, TOO_MANY, input=case, got=f"{used} entries that are not 0", expected=f"at most {k}")
        scores = [float(fast_auc((new_latents @ probe.float())[:, None], new_labels))
                  for probe in (got, sparse_probe(seen_latents, seen_labels, k))]
        require(scores[0] > scores[1] - 0.02, poor, input=case, got=f"AUC {scores[0]:.3f}", expected=f"{scores[1]:.3f}")


EXERCISES = [
    Exercise(
        id="06.encode",
        title="Encode",
        reference=encode,
        check=compare_cases(encode_cases, ENCODE_MISTAKES, keeps_inputs=True, kind=KeepsDouble),
        hints=(
            "Subtract b_dec, multiply by W_enc, add b_enc; what is negative becomes 0.",
            "`@` multiplies the last axis of x by W_enc, and biases are added along the last axis.",
            "`((x - b_dec) @ W_enc + b_enc).relu()`",
        ),
        minutes=4,
        difficulty=1,
    ),
    Exercise(
        id="06.sae_loss",
        title="What training asks for",
        reference=sae_loss,
        check=compare_cases(loss_cases, LOSS_MISTAKES, keeps_inputs=True, kind=KeepsDouble),
        hints=(
            "Find one number for each token: its squared error, summed over d_in, and sparsity times its Σ|f|.",
            "`.pow(2).sum(dim=1)` and `.abs().sum(dim=1)` are both [tokens]; the mean comes last.",
            "`((x_hat - x).pow(2).sum(dim=1) + sparsity * latents.abs().sum(dim=1)).mean()`",
        ),
        minutes=5,
        difficulty=1,
    ),
    Exercise(
        id="06.reconstruct_rescaled",
        title="There and back",
        reference=reconstruct_rescaled,
        check=compare_cases(rescale_cases, RESCALE_MISTAKES, keeps_inputs=True),
        hints=(
            "By which number, one for each token, must x be divided so that its norm becomes √d_in?",
            "`x.norm(dim=1, keepdim=True) / x.shape[1] ** 0.5` is [tokens, 1]. Divide x by it.",
            "`autoencoder(x / scale) * scale`",
        ),
        minutes=6,
        difficulty=2,
    ),
    Exercise(
        id="06.top_k",
        title="The k largest",
        reference=top_k,
        check=CompareThenState(
            compare_cases(top_k_cases, TOP_K_MISTAKES, keeps_inputs=True, kind=AnyOfEqual), keeps_double),
        hints=(
            "`values, indices = pre.topk(k, dim=-1)` finds them in each row.",
            "Start from `torch.zeros_like(pre)`, and put `values.relu()` in the places `indices`.",
            "`torch.zeros_like(pre).scatter(-1, indices, values.relu())`",
        ),
        minutes=6,
        difficulty=2,
    ),
    Exercise(
        id="06.topk_step",
        title="A training step",
        reference=topk_step,
        check=compare_cases(step_cases, STEP_MISTAKES, kind=AfterSteps, loose_scalars=True),
        hints=(
            "Latents, reconstruction, loss; gradients, step; and one thing that the loop of section 2 does after "
            "every step.",
            "`pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc`, and `top_k(pre, sae.k)` are the latents. The loss is "
            "`sae_loss` with sparsity 0.",
            "After `zero_grad()`, `backward()` and `step()`: with `torch.no_grad()`, divide `sae.W_dec` by "
            "`sae.W_dec.norm(dim=1, keepdim=True)`; return `loss.item()`.",
        ),
        minutes=10,
        difficulty=2,
    ),
    Exercise(
        id="06.gated",
        title="Whether, and how much",
        reference=gated,
        check=compare_cases(gated_cases, GATED_MISTAKES, keeps_inputs=True),
        hints=(
            "Write the two lines of the text above, gate and magnitude. What must be done with the two?",
            "`pre + b_gate > 0` is the gate, and a latent is gate times magnitude.",
            "`(pre + b_gate > 0) * (pre * r_mag.exp() + b_mag).relu()`",
        ),
        minutes=4,
        difficulty=1,
    ),
    Exercise(
        id="06.dead_latents",
        title="Who is never active?",
        reference=dead_latents,
        check=compare_cases(dead_cases, DEAD_MISTAKES, keeps_inputs=True),
        hints=(
            "First find out where a latent is active and the position counts: [n, pos, d_sae], True or False.",
            "`mask[..., None]` has an axis for the latents. A latent is alive if there is any such place.",
            "`~((latents != 0) & mask[..., None]).any(dim=1).any(dim=0)`",
        ),
        minutes=6,
        difficulty=2,
    ),
    Exercise(
        id="06.top_activations",
        title="Where is it strongest?",
        reference=top_activations,
        check=compare_cases(strongest_cases, STRONGEST_MISTAKES, keeps_inputs=True),
        hints=(
            "Take the strongest position of each sequence first, and choose among the sequences then.",
            "`largest, positions = latent.max(dim=1)`, and `largest.argsort(descending=True)[:k]` says which "
            "sequences.",
            "Keep the sequences whose `largest` is above 0; then "
            "`torch.stack([sequences, positions[sequences]], dim=1)`.",
        ),
        minutes=10,
        difficulty=2,
    ),
    Exercise(
        id="06.auc",
        title="Does it know?",
        reference=auc,
        check=compare_cases(auc_cases, AUC_MISTAKES, keeps_inputs=True),
        hints=(
            "`latents[labels]` has the labelled positions, `latents[~labels]` the others. Compare all pairs.",
            "With `yes = latents[labels][:, None]` and `no = latents[~labels][None]`, `yes > no` is "
            "[labelled, other, d_sae].",
            "The mean over the first two axes of `(yes > no).float() + (yes == no).float() / 2`. "
            "(`course_utils.latents.auc` sorts instead, which takes less memory when there are many latents.)",
        ),
        minutes=15,
        difficulty=3,
    ),
    Exercise(
        id="06.luck",
        title="How good is luck?",
        reference=luck,
        check=luck_states,
        hints=(
            "What must be shuffled so that the labels say nothing about the text any more, and all they say about the "
            "place in a text stays?",
            "Whole texts: `order = torch.randperm(n, generator=rng)`, and text i gets `labels[order[i]]`, together "
            "with `known[order[i]]`.",
            "In each draw: `asked = known[order]`, then `fast_auc(latent[asked][:, None], labels[order][asked])`, "
            "which is [1].",
        ),
        minutes=10,
        difficulty=2,
    ),
    Exercise(
        id="06.sparse_probe",
        title="A few latents together",
        reference=sparse_probe,
        check=probe_states,
        hints=(
            "Which k latents would you ask, if you could ask each of them separately? Either sign is of use.",
            "The k whose means at labelled and at other positions differ most, by size. "
            "`linear_direction(latents[:, chosen], labels)` weighs them.",
            "Put these weights into `torch.zeros(d_sae)` at `chosen`.",
        ),
        minutes=10,
        difficulty=2,
    ),
]

IN_THE_PACKAGE = {"06.top_k": sae.top_k, "06.auc": latents.auc}
