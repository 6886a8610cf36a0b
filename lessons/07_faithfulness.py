# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 07 · Is it faithful?
#
# **The question.** An autoencoder gives back 90 % of the variance of an activation. Is that good? The model
# does not care about variance; it goes on from the activation to a prediction. So put the reconstruction in the
# activation's place, let the model go on, and compare the two predictions.
#
# There are a dozen numbers for "compare", and libraries that call theirs by the same name disagree. You will
# write the important ones yourself, test them on autoencoders whose value is known beforehand, follow the rules of
# two evaluators in wide use, and see which number each mistake fools.
#
# **You need:** lesson 06.

# %%
import os

import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import display
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from course_utils.exercises import exercise, hint, predict, progress, reveal, solution
from course_utils.faithfulness import SAEBENCH, SAELENS, evaluate_sae
from course_utils.measured import measured
from course_utils.models import load_model, load_real_model
from course_utils.passes import collect_activations
from course_utils.sae import SparseAutoencoder
from course_utils.sae_files import (load_pretrained_sae, load_shipped_sae, middle_layer, shipped_saes,
                                    topk_sae_for)
from course_utils.text import sample_text
from course_utils.viz import plot_by_position, plot_histogram

MODEL = os.environ.get("COURSE_MODEL", "tiny")      # or write a name here, such as "smollm2-135m"
model = load_model(MODEL)
LAYER = middle_layer(model)
HOOK = f"blocks.{LAYER}.hook_resid_pre"
sae = topk_sae_for(model)
N, LENGTH = (48, 128) if MODEL == "tiny" else (6, min(64, model.cfg.n_ctx))
tokens = sample_text(model, n=N, length=LENGTH, seed=5)
print(f"{MODEL}: {sae}")
print(f"tokens {tuple(tokens.shape)}")

# %% [markdown]
# ## 1 · The downstream pass
#
# A forum thread that this lesson follows wrote the patched pass down with ĥ at every later layer, and without the
# final norm. Here is what happens:
#
#     h_ℓ        the residual stream where the autoencoder sits, from the clean tokens
#     ĥ_ℓ        decode(encode(h_ℓ)), but at BOS h_ℓ itself
#     h_i        block_i(h_{i−1}) for every later block: the reconstruction is put in ONCE, at ℓ
#     q          softmax(unembed(final norm(h_L)))
#
# The later layers are free to repair, or to amplify, what the autoencoder broke. That is what makes the metric
# *downstream*.

# %%
@exercise("07.patched_logits")
def patched_logits(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], hook_name: str, reconstruct
) -> Float[Tensor, "batch pos vocab"]:
    """Logits of the model with reconstruct(activation) in the activation's place, everywhere but at position 0.

    `reconstruct` takes and gives activations [..., d]. A hook function gets (activation, hook)
    and returns the new activation.
    """
    raise NotImplementedError


# %%
p_logits = model(tokens)
q_logits = patched_logits(model, tokens, HOOK, sae)
changed = (p_logits.argmax(-1) != q_logits.argmax(-1))[:, 1:-1].float().mean()
print(f"the most likely next token is another one at {changed:.0%} of the positions")

# %% [markdown]
# A full pass for each question is slow: everything below the autoencoder comes out as before.
# `evaluate_sae`, which we use below, lets one remembered clean run continue from the patch, as the sweeps of
# lesson 03 did.
#
# ## 2 · Cross-entropy, by position
#
# How good are the two predictions? CE_j is the mean cross-entropy of the token that comes *after* position j,
# over the sequences of the batch. (The thread's formula for it has lost its minus sign.)

# %%
@exercise("07.cross_entropy_by_position")
def cross_entropy_by_position(
    logits: Float[Tensor, "batch pos vocab"], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "pos-1"]:
    """CE_j = −(1/N) Σ_i ln p(t_{i, j+1}), in nats: entry j is about the logits at position j."""
    raise NotImplementedError


# %%
ce_clean, ce_sae = (cross_entropy_by_position(logits, tokens) for logits in (p_logits, q_logits))
plot_by_position({"clean": ce_clean, "with the reconstruction": ce_sae}, "cross-entropy (nats)",
                 title=f"{MODEL}: what the autoencoder costs, position by position")

# %% [markdown]
# ## 3 · ΔCE
#
# The difference is the oldest measure of faithfulness. Token by token it is ln p(t) − ln q(t), where t is the
# token that came, p the clean and q the patched prediction: positive where the patch did harm. (One library
# logs it with the opposite sign. Look before you compare.)

# %%
@exercise("07.delta_cross_entropy")
def delta_cross_entropy(
    p_logits: Float[Tensor, "batch pos vocab"], q_logits: Float[Tensor, "batch pos vocab"],
    tokens: Int[Tensor, "batch pos"],
) -> Float[Tensor, "batch pos-1"]:
    """ln p(t) − ln q(t) at each position but the last, for the token t that came next, in nats."""
    raise NotImplementedError


# %% [markdown]
# **Predict before you look:** the patched model lost information. Take the tokens whose log-probability it moves by
# more than 0.001 nats. Which share of them does it nevertheless predict *better* than the clean model? (Where both
# models are certain, ΔCE is about 10⁻⁶, and its sign is mere rounding.)

# %%
predict("07.share_better", None)

# %%
delta = delta_cross_entropy(p_logits, q_logits, tokens)[:, 1:]      # BOS is not patched, and not counted
moved = delta.abs() > 1e-3
reveal("07.share_better", round((delta[moved] < 0).float().mean().item(), 2), unit="")
print(f"moved: {moved.float().mean():.0%} of the tokens")
print(f"ΔCE: mean {delta.mean():.4f} nats, standard deviation {delta.std():.3f}")
plot_histogram(delta.clamp(-1, 1), "ΔCE of one token (nats; the ends collect what lies beyond)", "tokens",
               bins=60)

# %% [markdown]
# Nearly half of the tokens that moved are predicted *better*: a small change moves the probability of the token that
# came up almost as often as down. The mean is a small number left over from larger ones of both signs.
#
# ## 4 · KL
#
# ΔCE looks at one token, the one that happened to come. The **KL divergence** from p to q asks about all of
# them, each with the weight that the clean model gives it:
#
#     KL(p‖q) = Σ_y p(y) ln( p(y) / q(y) )        never negative, and 0 only if p = q
#
# It compares the two models with each other and does not ask which token came. (Is its mean that of ΔCE?
# Lesson 08 is about that question.)

# %%
@exercise("07.kl_divergence")
def kl_divergence(
    p_logits: Float[Tensor, "*position vocab"], q_logits: Float[Tensor, "*position vocab"]
) -> Float[Tensor, "*position"]:
    """KL(p‖q) in nats at each position (any number of leading axes, also none).

    Logits may be thousands apart. A token that both rule out (logit −inf) adds 0.
    """
    raise NotImplementedError


# %%
kl = kl_divergence(p_logits, q_logits)[:, 1:-1]
reverse = kl_divergence(q_logits, p_logits)[:, 1:-1]
print(f"KL(p‖q) {kl.mean():.4f} nats; the other way round {reverse.mean():.4f}")
print(f"mean ΔCE at the same positions {delta.mean():.4f} nats")
measured("KL of the shipped autoencoder", kl.mean(), unit="nats")

# %% [markdown]
# The two directions differ: KL(p‖q) is large where q rules out what p thinks likely, KL(q‖p) where q makes up
# what p rules out. The field reports the first. Now the numerical trap: one evaluator takes
# `log(softmax(logits))`.

# %%
far = torch.tensor([0.0, 200.0])
print("log(softmax):", far.softmax(0).log().tolist(), "  log_softmax:", far.log_softmax(0).tolist())
p, q = far.softmax(0), (0 * far).softmax(0)
print("KL with the first:", float((p * (p.log() - q.log())).sum()),
      "  with the second:", float(kl_divergence(far, 0 * far)))

# %% [markdown]
# ## 5 · The reconstruction score
#
# How many nats are many? The usual answer puts ΔCE on a scale between two landmarks, the clean model and one
# whose activation is replaced by zeros ("CE loss score", "loss recovered"):
#
#     score = (L_zero − L_sae) / (L_zero − L_clean)         1: nothing lost; 0: as bad as zeros
#
# Where the ablation costs nothing there is nothing to recover: then the score is *not defined*, and a function
# that divides anyway answers infinity or nonsense.

# %%
@exercise("07.reconstruction_score")
def reconstruction_score(clean: float, patched: float, ablated: float) -> float:
    """(L_ablated − L_patched) / (L_ablated − L_clean); NaN where |L_ablated − L_clean| is below 1e-6 nats."""
    raise NotImplementedError


# %%
report = evaluate_sae(model, sae, tokens)
print(f"cross-entropy: clean {report.ce_clean:.3f}, patched {report.ce_sae:.3f}, zeros {report.ce_zero:.3f}, "
      f"mean activation {report.ce_mean:.3f} nats")
print(f"score {reconstruction_score(report.ce_clean, report.ce_sae, report.ce_zero):.4f}; "
      f"against the mean activation {reconstruction_score(report.ce_clean, report.ce_sae, report.ce_mean):.4f}")
uniform = torch.tensor(float(model.cfg.d_vocab)).log()
print(f"a uniform guess would cost {uniform:.3f} nats; one point of the score is "
      f"{(report.ce_zero - report.ce_clean) / 100:.4f} nats")
measured("reconstruction score of the shipped autoencoder", report.reconstruction_score,
         at_least=0.95 if MODEL == "tiny" else None)

# %% [markdown]
# The landmark is far away, nearly as bad as guessing, so any autoencoder that is of use lies in the last few
# percent of the scale. How little a score says, we see when we give it autoencoders that we know to be bad.
#
# ## 6 · Autoencoders whose value is known
#
# Any object with `encode` and `decode` can be evaluated. Here are some that no one would ship:

# %%
seen = collect_activations(model, HOOK, tokens).unflatten(0, (N, -1))                # [n, pos-1, d_model]
mean_activation = seen[:, :-1].mean(dim=(0, 1))                                     # of the counted positions


class Degenerate:
    """An "autoencoder" that answers with a function of the activation."""

    def __init__(self, answer):
        self.answer = answer

    def encode(self, x):
        return x

    def decode(self, latents):
        return self.answer(latents)


def with_shuffled_decoder(sae):
    shuffled = SparseAutoencoder(sae.d_in, sae.d_sae, sae.kind, k=sae.k, hook_name=HOOK)
    shuffled.load_state_dict(sae.state_dict())
    order = torch.randperm(sae.d_sae, generator=torch.Generator().manual_seed(0))
    shuffled.W_dec.data.copy_(sae.W_dec[order])
    return shuffled.to(sae.W_dec.device)


suspects = {
    "identity": Degenerate(lambda x: x),
    "the shipped one": sae,
    "twice as long": Degenerate(lambda x: 2 * x),
    "half as long": Degenerate(lambda x: x / 2),
    "never trained": SparseAutoencoder(sae.d_in, sae.d_sae, "relu", hook_name=HOOK).to(model.cfg.device),
    "decoder shuffled": with_shuffled_decoder(sae),
    "the mean, always": Degenerate(lambda x: mean_activation.to(x).expand_as(x)),
    "zero": Degenerate(lambda x: 0 * x),
}
found = {name: evaluate_sae(model, each, tokens, hook_name=HOOK, everything=False, resamples=0)
         for name, each in suspects.items()}


def table(reports, columns):
    rows = {name: [getattr(each, column) for column in columns] for name, each in reports.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).round(4) + 0.0     # no "-0.0"


table(found, ["reconstruction_score", "delta_ce", "kl", "explained_variance", "l2_ratio", "l0"])

# %% [markdown]
# Go through the rows.
#
# - The **identity** is perfect everywhere, with as many "latents" as the stream has axes: a good score without
#   an L0 beside it means nothing.
# - **Zero** has score 0 by definition, and **the mean** has explained variance 0. These are tests of the
#   *metrics*: run them on any evaluator you use.
# - **Twice as long** and **half as long**: in a model with a norm at each layer's door, length hardly matters as
#   long as the direction is right. The explained variance is outraged, and the score barely notices. (The KL does:
#   it is about three times that of the shipped one.)
# - **Never trained**: random directions, L0 in the hundreds. In `tiny` its explained variance is *below zero* and
#   its score still looks like something one could publish. A high score is not evidence of a dictionary.
#
# ## 7 · The wrong layer
#
# A tutorial once evaluated an autoencoder of layer 8 at layer 10. The score was 0.93, and nobody noticed. The
# course's function refuses, unless you insist:

# %%
try:
    evaluate_sae(model, sae, tokens, hook_name=f"blocks.{LAYER + 1}.hook_resid_pre")
except ValueError as error:
    print(error)

# %%
elsewhere = {}
for layer in (LAYER - 1, LAYER, LAYER + 1):
    hook = f"blocks.{layer}.hook_resid_pre"
    elsewhere[f"layer {layer}"] = evaluate_sae(model, sae, tokens, hook_name=hook, force=True,
                                              everything=False, resamples=0)
table(elsewhere, ["reconstruction_score", "kl", "explained_variance", "cosine", "l0"])

# %% [markdown]
# In `tiny`, too, a wrong layer can keep a score that looks good, one layer up: with many times the KL.
#
# ## 8 · One mean
#
# An evaluation goes through many batches, and every batch has positions that do not count: BOS, padding. The
# mean over all counted positions is not the mean of the batches' means, unless they count equally many. And a
# *ratio* averaged over batches is not a ratio of anything.

# %%
@exercise("07.pooled_mean")
def pooled_mean(values: list[Float[Tensor, "batch pos"]], masks: list[Bool[Tensor, "batch pos"]]) -> float:
    """The mean of all values whose mask is True, over all batches together.

    A value that is not counted may be anything, also NaN. Raise a ValueError if no position is counted.
    """
    raise NotImplementedError


# %%
lengths = torch.linspace(8, LENGTH, len(tokens)).long()             # as if the texts had different lengths
mask = (torch.arange(LENGTH) < lengths[:, None]) & (torch.arange(LENGTH) > 0)
per_token = kl_divergence(p_logits, q_logits).cpu()
batches, masks = per_token.split(len(tokens) // 3), mask.split(len(tokens) // 3)
of_means = sum(float(values[counted].mean()) for values, counted in zip(batches, masks)) / len(batches)
print(f"KL, pooled {pooled_mean(list(batches), list(masks)):.5f} nats; mean of the batches' means {of_means:.5f}")

# %% [markdown]
# ## 9 · How sure?
#
# The tokens of one text are not independent: a hard text is hard all over. So an interval must resample whole
# *sequences*, not tokens: draw as many sequences as there are, with replacement, compute the pooled mean, and
# repeat. The middle 95 % of the results is the interval.

# %%
@exercise("07.bootstrap_interval")
def bootstrap_interval(
    values: Float[Tensor, "n pos"], mask: Bool[Tensor, "n pos"], draws: Int[Tensor, "resample n"]
) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of the pooled mean over resampled sequences.

    Row r of `draws` names the sequences of resample r; one that is drawn twice counts twice. Sequences may have
    different numbers of counted positions.
    """
    raise NotImplementedError


# %%
draws = torch.randint(0, N, (400, N), generator=torch.Generator().manual_seed(0))
counted = torch.ones_like(per_token, dtype=torch.bool)
counted[:, [0, -1]] = False
by_sequence = bootstrap_interval(per_token, counted, draws)
flat = per_token[counted]
resampled = torch.randint(0, len(flat), (400, len(flat)), generator=torch.Generator().manual_seed(0))
by_token = flat[resampled].mean(dim=1).quantile(torch.tensor([0.025, 0.975])).tolist()
print(f"KL {flat.mean():.4f} nats; interval from sequences {by_sequence[0]:.4f} to {by_sequence[1]:.4f}, "
      f"from tokens {by_token[0]:.4f} to {by_token[1]:.4f}")

# %%
report.to_frame().round(4)

# %% [markdown]
# This is what `evaluate_sae` reports: every mean with its interval, over one shared mask, pooled, in nats. For
# bits ask `to_frame("bits")`: one bit is ln 2 = 0.693 nats. ("Bits lost" is nothing but ΔCE in bits.)
#
# ## 10 · Explained variance, right and wrong
#
# This number of the table has been got wrong in several libraries. The definition is the share of the
# *variance*, which is measured about the mean:
#
#     1 − E‖x̂ − x‖² / E‖x − E x‖²

# %%
@exercise("07.explained_variance")
def explained_variance(x: Float[Tensor, "tokens d"], x_hat: Float[Tensor, "tokens d"]) -> float:
    """1 − E‖x̂ − x‖² / E‖x − E x‖².

    E is the mean over the tokens (divide by n, not n − 1), E x a vector; ‖·‖² sums over components.
    """
    raise NotImplementedError


# %%
x = collect_activations(model, HOOK, tokens)
x_hat = sae(x.to(model.cfg.device)).cpu()
error, from_mean = (x_hat - x).pow(2).sum(dim=1), (x - x.mean(dim=0)).pow(2).sum(dim=1)
size = x.pow(2).sum(dim=1)
versions = {
    "right": explained_variance(x, x_hat),
    "about zero": float(1 - error.mean() / size.mean()),
    "mean of the tokens' ratios": float((1 - error / from_mean).mean()),
    "SAEBench's": float(1 - error.mean() / (size.mean() - (size.mean() / x.shape[1]) ** 2)),
    "forgives a shift": float(1 - (x_hat - x).var(dim=0).sum() / x.var(dim=0).sum()),
}
for name, value in versions.items():
    print(f"{name:28} {value:.4f}")
shifted = x_hat + x.mean(dim=0)                                     # every reconstruction off by the same vector
print(f"the same error everywhere:   right {explained_variance(x, shifted):.4f}, "
      f"forgives a shift {float(1 - (shifted - x).var(dim=0).sum() / x.var(dim=0).sum()):.4f}")

# %% [markdown]
# - *About zero*: the mean activation is not zero, and its square is not a variance. An autoencoder that always
#   answers the mean gets credit for it (in `tiny` a fifth of ‖x‖²). (SAELens had a form of this until pull
#   request 665; a user saw 0.98 where the truth was 0.78.)
# - *Mean of ratios*: tokens whose activation happens to lie near the mean get enormous weight. (Older SAELens,
#   still reported as "legacy".)
# - *SAEBench's* denominator subtracts (E‖x‖² / d)², the square of a mean of squares: a number with the wrong
#   unit. Where activations are large it can even turn negative.
# - *Forgives a shift*: measures the variance of the error, so a constant error is free. (dictionary_learning.)
#
# ## 11 · Conventions
#
# Even with right formulas evaluators differ in which positions are patched and which are counted. The course's
# rule is one mask for all. The other two can be asked for. SAELens's then gives its numbers to many digits (that is
# tested against SAELens itself); SAEBench's follows its source.

# %%
conventions = {"the course": report}
for name, convention in (("SAELens", SAELENS), ("SAEBench", SAEBENCH)):
    conventions[name] = evaluate_sae(model, sae, tokens, convention=convention, everything=False,
                                     resamples=0)
table(conventions, ["reconstruction_score", "ce_sae", "ce_zero", "kl", "kl_score", "mse"])

# %% [markdown]
# - **SAELens** leaves BOS alone in the autoencoder's pass, but its zero ablation wipes out BOS too: numerator and
#   denominator belong to different experiments. Its KL counts the last position and its cross-entropy cannot. (The
#   last position of `tiny` was never trained: that one can raise a mean of 127 by half.)
# - **SAEBench** puts the reconstruction also in BOS's place, unless told otherwise. How much that costs depends
#   on whether the autoencoder ever saw a BOS: a difference of the *training* appears as one of faithfulness.
#
# None of them is a crime. But two numbers may be compared only if they were made by one rule.
#
# ## 12 · Where in the sequence, and at which layer?

# %%
plot_by_position({"KL(p‖q)": report.kl_by_position[1:-1], "ΔCE": report.delta_ce_by_position[1:-1]}, "nats",
                 x=torch.arange(1, LENGTH - 1), title=f"{MODEL}: faithfulness by position")

# %% [markdown]
# No trend; single positions stand out, and ΔCE jumps about the KL. And layer by layer:

# %%
by_layer = {name: evaluate_sae(model, load_shipped_sae(MODEL, name), tokens, everything=False, resamples=0)
            for name in shipped_saes(MODEL) if name.startswith("topk")}
if len(by_layer) > 1:
    display(table(by_layer, ["reconstruction_score", "delta_ce", "kl", "explained_variance", "ce_zero"]))

# %% [markdown]
# The same k at every layer. Two layers can have the same score and KLs that differ by half, for the score's
# landmark `ce_zero` moves, too: a score at one layer and a score at another have different units.
#
# ## 13 · Does it hold in a real language model?

# %%
real_model = load_real_model()

# %%
if real_model is not None:
    real_sae = topk_sae_for(real_model)
    real_tokens = sample_text(real_model, n=16, length=96, seed=0)
    real_report = evaluate_sae(real_model, real_sae, real_tokens, batch_size=4)
    display(real_report.to_frame().round(3))
    measured("SmolLM2: reconstruction score of the shipped autoencoder", real_report.reconstruction_score,
             at_least=0.85)
    measured("SmolLM2: KL of the shipped autoencoder", real_report.kl, unit="nats")

# %% [markdown]
# A score of 0.96 and 81 % of the variance sound nearly perfect. The KL says a third of a nat for every token, a
# tenth of the model's whole cross-entropy. The score alone did not say so. (ΔCE and KL agree here within their
# intervals. That is not an accident: this text was written by SmolLM2 itself. See lesson 08.)
#
# On GPT-2 small with a published autoencoder the same call works wherever the Hugging Face hub answers. The
# figures to expect are quoted, not ours: at resid_pre 10 a SAELens tutorial stored cross-entropies of 3.646
# (clean), 3.825 (patched) and 11.784 (zeros), a score of .978.

# %%
TRY_GPT2 = False            # True downloads 600 MB, once
if TRY_GPT2:
    gpt2 = load_model("gpt2-small")
    published = load_pretrained_sae("gpt2-small-res-jb", "blocks.10.hook_resid_pre")
    display(evaluate_sae(gpt2, published, sample_text(gpt2, n=8, length=64), batch_size=2).to_frame())

# %% [markdown]
# ## What this does not show
#
# - That a faithful autoencoder is *interpretable*: the identity is perfectly faithful.
# - That mean KL finds what matters: a rare token on which everything depends disappears in the mean.
# - What the error *is*. Is a KL of this size much for an error of this length? Lesson 08 compares with random
#   errors of the same length.
# - Faithfulness on other text. Lesson 09 asks about the induction circuit instead.
#
# ## Summary
#
# - Put the reconstruction in once, keep BOS, let the model go on, compare predictions.
# - ΔCE looks at the token that came and has both signs; KL(p‖q) looks at all tokens and is never negative.
# - The score is ΔCE divided by what an ablation costs. The landmark is far off and differs by layer; near 1
#   everything looks alike.
# - One mask, pooled means, sequence-level intervals, units.
# - Try every metric on the identity, zero, the mean, an untrained autoencoder and the wrong layer.
#
# Sources: Gao et al. (2024), section 4.1, downstream loss; Rajamanoharan et al. (2024), eq. 10, relative
# reconstruction bias; SAELens pull requests 443, 659 and 665, explained variance; SAEBench
# (evals/core/main.py) and dictionary_learning (evaluation.py) for their conventions; the wrong layer: outputs
# stored in a SAELens tutorial.
#
# Next: **08 · The arguments**: is ΔCE the KL? And how large is the error that we should expect?

# %% tags=["exercise-only"]
progress("07")
