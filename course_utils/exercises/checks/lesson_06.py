"""Exercises of lesson 06: sparse autoencoders."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from course_utils import latents, sae
from course_utils.exercises.checking import Case, CompareCases, Exercise, compare_cases
from course_utils.exercises.checks.shared import drawn
from course_utils.exercises.mistakes import seen, variants
from course_utils.latents import dead_latents, top_activations
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


def jump_relu(pre: Float[Tensor, "... d_sae"], threshold: Float[Tensor, "d_sae"]) -> Float[Tensor, "... d_sae"]:
    """pre where it exceeds the threshold of its latent, else 0. Thresholds are not negative."""
    return pre * (pre > threshold)


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


# --- inputs ---------------------------------------------------------------------------------------------------


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
    ]


def loss_cases() -> list[Case]:
    x, x_hat, latents = drawn(3, 5), drawn(3, 5, seed=1), drawn(3, 8, seed=2)       # some latents are below 0
    return [
        Case(x, x_hat.clone().requires_grad_(), latents, 2.0, label="3 tokens, a gradient for x_hat"),
        Case(x, x_hat, latents.clone().requires_grad_(), 0.5, label="3 tokens, a gradient for the latents"),
        Case(drawn(7, 4, seed=3), drawn(7, 4, seed=4), drawn(7, 6, seed=5), 3.0, label="7 tokens, 4 -> 6"),
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


def jump_cases() -> list[Case]:
    at_threshold, threshold = drawn(5, 4), torch.tensor([0.5, 0.25, 0.0, 1.5])
    at_threshold[0] = threshold                                         # exactly there: 0
    at_threshold[1], at_threshold[2] = 2 * threshold + 0.5, 0.5 * threshold
    return [Case(at_threshold, threshold, label="[5, 4]; the first row is exactly at the thresholds"),
            Case(drawn(2, 3, 6, seed=1), drawn(6, seed=2).abs() / 2, label="[2, 3, 6]")]


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
    latents[1, 2, 3] = -2.0                                             # negative, but not 0
    latents[0, 1, 4], latents[2, 2, 4] = 1.5, -1.5                      # their sum is 0
    latents[1, 3, 5] = 4.0                                              # in one sequence only
    latents[0, 2, 6] = 1e-4                                             # hardly
    latents[:, 1, 7] = 3.0                                              # once in every sequence
    sparse, some = drawn(4, 5, 9, seed=1), drawn(4, 5, seed=2) > 0
    sparse = sparse * (sparse.abs() > 1.9)
    return [Case(latents, mask, label="8 latents, each with its own story"),
            Case(sparse, some, label="[4, 5, 9], mask at random")]


def strongest_cases() -> list[Case]:
    few = 0.2 * (drawn(6, 5, seed=1).abs() - 0.3).relu()                # active, and far below 1
    few[[1, 4]] = 0                                                     # nowhere active in these
    clustered = drawn(8, 6, seed=2).relu()
    clustered[2] += 2                                                   # the largest of all are in one sequence
    return [Case(clustered, 3, label="8 sequences, k = 3, the largest all in one"),
            Case(few, 5, label="6 sequences, two of them without the latent, k = 5"),
            Case(drawn(7, 6, seed=3).relu(), 2, label="7 sequences, k = 2")]


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
    "these are ones: keep the values": {"values.relu()": "(values > 0).float()"},
    "these are the k values alone: put each back in its place, with 0 elsewhere":
        seen(lambda got, expected: got.ndim == expected.ndim and got.shape[-1] < expected.shape[-1]),
})


JUMP_MISTAKES = variants(jump_relu, {
    "the threshold is subtracted: what exceeds it keeps its whole value": "(pre - threshold).relu()",
    "a value exactly at the threshold is kept: it has to exceed it": "pre * (pre >= threshold)",
    "this is relu: the threshold is ignored": "pre.relu()",
    "these are ones: keep the values": "(pre > threshold).float()",
    "chosen by size, without the sign: a large negative value does not exceed its threshold":
        "pre * (pre.abs() > threshold)",
    "what lies below becomes the threshold itself: it must become 0": "torch.maximum(pre, threshold)",
    "the wrong side is kept: what exceeds the threshold stays": "pre * (pre < threshold)",
    "one threshold for all: each latent has its own":
        ("pre * (pre > threshold.mean())", "pre * (pre > threshold[0])"),
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
    "this is the magnitude without a bias: add b_mag": {"r_mag.exp() + b_mag": "r_mag.exp()"},
})


DEAD_MISTAKES = variants(dead_latents, {
    "a latent below 0 is active too: only 0 is not": {"latents != 0": "latents > 0"},
    "positions that the mask leaves out are counted": {" & mask[..., None]": ""},
    "the mask is inverted: True marks the positions that count": {"& mask": "& ~mask"},
    "these are the latents that are alive: dead is the opposite": {"~(": "("},
    "this is True where a latent is 0 at some position: it must be 0 at every one":
        {"~((latents != 0)": "((latents == 0)"},
    "this is True where a latent is silent in some sequence: it must be in all":
        "((latents == 0) | ~mask[..., None]).all(dim=1).any(dim=0)",
    "positions that the mask leaves out make every latent look alive":
        "((latents == 0) & mask[..., None]).all(dim=1).all(dim=0)",
    "values above and below 0 cancel in a sum: ask at each position whether it is 0":
        "(latents * mask[..., None]).sum(dim=(0, 1)) == 0",
    "this is an answer for each sequence: a latent is dead if it is 0 in all of them":
        seen(lambda got, expected: got.ndim == 2 and got.shape[-1] == expected.shape[-1]),
})


STRONGEST_MISTAKES = variants(top_activations, {
    "several come from one sequence: at most one in each": """places = latent.flatten().topk(k).indices
places = places[latent.flatten()[places] > 0]
return torch.stack([places // latent.shape[1], places % latent.shape[1]], dim=1)""",
    "the smallest come first": {"> 0]": "> 0].flip(0)"},
    "these are the weakest sequences: the largest values come first":
        {"descending=True, stable=True)[:k]": "stable=True)", "> 0]": "> 0][:k]"},
    "the columns are swapped: first the sequence, then the position":
        {"[sequences, positions[sequences]]": "[positions[sequences], sequences]"},
    "places where the latent is not active are among them: leave them out":             # only where k is 5
        seen(lambda got, expected: len(got) == 5 and torch.equal(got[:-1], expected)),
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


EXERCISES = [
    Exercise(
        id="06.encode",
        title="Encode",
        reference=encode,
        check=compare_cases(encode_cases, ENCODE_MISTAKES, keeps_inputs=True),
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
        check=compare_cases(loss_cases, LOSS_MISTAKES, keeps_inputs=True),
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
        check=compare_cases(top_k_cases, TOP_K_MISTAKES, keeps_inputs=True, kind=AnyOfEqual),
        hints=(
            "`values, indices = pre.topk(k, dim=-1)` finds them in each row.",
            "Start from `torch.zeros_like(pre)`, and put `values.relu()` in the places `indices`.",
            "`torch.zeros_like(pre).scatter(-1, indices, values.relu())`",
        ),
        minutes=6,
        difficulty=2,
    ),
    Exercise(
        id="06.jump_relu",
        title="A threshold of its own",
        reference=jump_relu,
        check=compare_cases(jump_cases, JUMP_MISTAKES, keeps_inputs=True),
        hints=(
            "Compare pre with the threshold; the threshold is not subtracted from what stays.",
            "`pre > threshold` is True or False, which multiplies like 1 or 0.",
            "`pre * (pre > threshold)`",
        ),
        minutes=3,
        difficulty=1,
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
        minutes=10,
        difficulty=3,
    ),
]

IN_THE_PACKAGE = {"06.top_k": sae.top_k, "06.auc": latents.auc}
