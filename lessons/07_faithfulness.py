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
# **The question.** An autoencoder gives back 90 % of an activation's variance. Is that good? The model does not
# care about variance: it continues from the activation to a prediction. So replace the activation by its
# reconstruction, let the model continue, and compare predictions.
#
# A dozen numbers "compare", and libraries disagree about numbers of the same name. You will write the important
# ones, test them on autoencoders of known value, follow the rules of two evaluators in wide use, see which number
# each mistake fools, and decide which of two autoencoders is better.
#
# **You need:** lesson 06.

# %% tags=["parameters"]
import os

import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import display
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from course_utils.claims import claim
from course_utils.exercises import exercise, hint, predict, progress, reveal, solution
from course_utils.faithfulness import SAEBENCH, SAELENS, evaluate_sae, evaluate_saes
from course_utils.language import StoryLanguage
from course_utils.measured import measured
from course_utils.models import load_model, load_real_model
from course_utils.passes import collect_activations
from course_utils.sae import SparseAutoencoder
from course_utils.sae_files import (load_pretrained_sae, load_shipped_sae, middle_layer, shipped_saes,
                                    topk_sae_for)
from course_utils.text import sample_text
from course_utils.viz import plot_by_position, plot_histogram

MODEL = os.environ.get("COURSE_MODEL", "tiny")      # or write a name here, such as "smollm2-135m"

# %%
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
# One often sees $\hat h$ written at every later layer. It is patched in once, at $\ell$:
#
# $$\hat h_\ell = \text{decode}(\text{encode}(h_\ell)) \text{ (at BOS: } h_\ell \text{)}, \qquad
# \hat h_i = \text{block}_i(\hat h_{i-1}) \text{ for } i > \ell, \qquad
# q = \text{softmax}\big(\text{unembed}(\text{norm}(\hat h_L))\big)$$
#
# The later layers may repair or amplify what the autoencoder broke, which makes the metric *downstream*.

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
# Below the autoencoder nothing changes. So `evaluate_sae`, used below, continues a remembered clean run from the
# patch, as lesson 03's sweeps did.
#
# ## 2 · ΔCE
#
# The oldest measure of faithfulness is a difference of cross-entropies. Token by token it is
# $\Delta CE = \ln p(t) - \ln q(t)$, where $t$ is the actual next token, $p$ the clean and $q$ the patched
# prediction. It is positive where the patch did harm. (One library logs the opposite sign.)

# %%
@exercise("07.delta_cross_entropy")
def delta_cross_entropy(
    p_logits: Float[Tensor, "batch pos vocab"], q_logits: Float[Tensor, "batch pos vocab"],
    tokens: Int[Tensor, "batch pos"],
) -> Float[Tensor, "batch pos-1"]:
    """ln p(t) − ln q(t) at each position but the last, for the actual next token t, in nats.

    Logits may be hundreds apart.
    """
    raise NotImplementedError


# %% [markdown]
# **Predict before you look:** the patched model lost information. Of the tokens whose log-probability moves by more
# than 0.001 nats, what share does it predict *better* than the clean model? (Where both are certain, ΔCE is about
# 10⁻⁶, its sign mere rounding.)

# %%
predict("07.share_better", None, unit="")

# %%
delta = delta_cross_entropy(p_logits, q_logits, tokens)[:, 1:]      # BOS is not patched, and not counted
moved = delta.abs() > 1e-3
reveal("07.share_better", round((delta[moved] < 0).float().mean().item(), 2))
print(f"moved: {moved.float().mean():.0%} of the tokens")
print(f"ΔCE: mean {delta.mean():.4f} nats, standard deviation {delta.std():.3f}")
plot_histogram(delta[moved].clamp(-1, 1), "ΔCE of one token (nats; the ends collect what lies beyond)",
               "tokens that moved", bins=60, title=f"{MODEL}: the tokens that moved")

# %% [markdown]
# If you said "hardly any": a patch that knows nothing of $t$ pushes its probability about, and a small push raises
# it almost as often as it lowers it. The mean is a small number left over from larger ones of both signs.
#
# ## 3 · KL
#
# ΔCE looks at one token. The **KL divergence** from p to q asks about all of them, each with the weight that the
# clean model gives it:
#
# $$KL(p\,\|\,q) = \sum_y p(y)\,\ln\frac{p(y)}{q(y)} \qquad \text{never negative, and 0 only if } p = q$$
#
# It compares the two models, whatever the actual next token. (Is its mean that of ΔCE? Lesson 08 asks.)

# %%
@exercise("07.kl_divergence")
def kl_divergence(
    p_logits: Float[Tensor, "*position vocab"], q_logits: Float[Tensor, "*position vocab"]
) -> Float[Tensor, "*position"]:
    """KL(p‖q) in nats at each position (any number of leading axes, also none).

    Logits may be thousands apart. A token that both rule out (logit −inf) adds 0; one that q alone rules out makes it
    infinite.
    """
    raise NotImplementedError


# %%
kl = kl_divergence(p_logits, q_logits)[:, 1:-1]
reverse = kl_divergence(q_logits, p_logits)[:, 1:-1]
print(f"KL(p‖q) {kl.mean():.4f} nats; the other way round {reverse.mean():.4f}")
print(f"mean ΔCE at the same positions {delta.mean():.4f} nats")
print(f"KL of the median token {kl.median():.1g} nats")
measured("KL of the shipped autoencoder", kl.mean(), unit="nats")

# %% [markdown]
# The two directions differ: KL(p‖q) is large where q rules out what p thinks likely, KL(q‖p) where q makes up what
# p rules out. The field reports the first. The median token hardly changes, and section 11 asks who pays.
#
# Now the numerical trap: SAEBench takes `log(softmax(logits))`.

# %%
far = torch.tensor([0.0, 200.0])
print("log(softmax):", far.softmax(0).log().tolist(), "  log_softmax:", far.log_softmax(0).tolist())
p, q = far.softmax(0), (0 * far).softmax(0)
print("KL with the first:", float((p * (p.log() - q.log())).sum()),
      "  with the second:", float(kl_divergence(far, 0 * far)))

# %% [markdown]
# ## 4 · The reconstruction score
#
# How many nats are many? The usual answer puts ΔCE on a scale between two landmarks, the clean model and one whose
# activation is replaced by zeros ("CE loss score", "loss recovered"):
#
# $$\text{score} = \frac{L_{zero} - L_{sae}}{L_{zero} - L_{clean}} \qquad \text{1: nothing lost; 0: as bad as zeros}$$
#
# Where the ablation costs nothing the score is *not defined*, and a function that divides anyway answers infinity
# or nonsense.

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
# The landmark is far away, nearly as bad as guessing, so any useful autoencoder lies in the last few percent of the
# scale. Autoencoders known to be bad show how little a score says.
#
# ## 5 · Autoencoders whose value is known
#
# Any object with `encode` and `decode` can be evaluated. Here are some that no one would ship, and one rival that
# someone might: PCA, fitted to other text. An active latent says two things, its value and which one it is, so PCA
# gets two components for each.

# %%
seen = collect_activations(model, HOOK, tokens).unflatten(0, (N, -1))                # [n, pos-1, d_model]
mean_activation = seen[:, :-1].mean(dim=(0, 1))                                     # of the counted positions
other_text = collect_activations(model, HOOK, sample_text(model, n=4 * N, length=LENGTH, seed=6)).double()
centre, K = other_text.mean(dim=0), min(2 * sae.k, model.cfg.d_model - 1)
components = torch.linalg.eigh((other_text - centre).T @ (other_text - centre)).eigenvectors[:, -K:].float()


class Degenerate:
    """An "autoencoder" whose latents are the activation itself, and which answers with a function of it."""

    def __init__(self, answer):
        self.answer = answer

    def encode(self, x):
        return x

    def decode(self, latents):
        return self.answer(latents)

    def __call__(self, x):
        return self.decode(self.encode(x))


class PCA(Degenerate):
    """The latents are the coordinates along the largest principal components."""

    def __init__(self, components, centre):
        self.components, self.centre = components, centre

    def encode(self, x):
        return (x - self.centre.to(x)) @ self.components.to(x)

    def decode(self, latents):
        return latents @ self.components.T.to(latents) + self.centre.to(latents)


def with_shuffled_decoder(sae):
    shuffled = SparseAutoencoder(sae.d_in, sae.d_sae, sae.kind, k=sae.k, hook_name=HOOK)
    shuffled.load_state_dict(sae.state_dict())
    order = torch.randperm(sae.d_sae, generator=torch.Generator().manual_seed(0))
    shuffled.W_dec.data.copy_(sae.W_dec[order])
    return shuffled.to(sae.W_dec.device)


def untrained(independent):
    """Never trained: the decoder starts as the encoder's transpose, or, if `independent`, as random rows of its own."""
    made, other = (SparseAutoencoder(sae.d_in, sae.d_sae, "relu", hook_name=HOOK, seed=seed) for seed in (0, 1))
    if independent:
        made.W_dec.data.copy_(other.W_dec)
    return made.to(model.cfg.device)


suspects = {
    "identity": Degenerate(lambda x: x),
    "the shipped one": sae,
    f"PCA, {K} components": PCA(components, centre),
    "twice as long": Degenerate(lambda x: 2 * x),
    "half as long": Degenerate(lambda x: x / 2),
    "never trained": untrained(independent=False),
    "the same, decoder independent": untrained(independent=True),
    "decoder shuffled": with_shuffled_decoder(sae),
    "the mean, always": Degenerate(lambda x: mean_activation.to(x).expand_as(x)),
    "zero": Degenerate(lambda x: 0 * x),
}
found = evaluate_saes(model, suspects, tokens, hook_name=HOOK, everything=False, resamples=0)


def table(reports, columns):
    rows = {name: [getattr(each, column) for column in columns] for name, each in reports.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).round(4) + 0.0     # no "-0.0"


table(found, ["reconstruction_score", "delta_ce", "kl", "explained_variance", "l2_ratio", "l0"])

# %% [markdown]
# - The **identity** is perfect, with as many "latents" as the stream has axes: a good score without an L0 beside it
#   means nothing.
# - **Zero** has score 0 by definition, **the mean** explained variance 0. These test the *metric*: run them on any
#   evaluator.
# - **Twice as long** and **half as long**: each block normalises what it reads, so length hardly matters if the
#   direction is right. In `tiny` the explained variance falls to −0.27 and 0.68, and the score stays above 0.995.
#   (The KL is about three times that of the shipped one.)
# - **Never trained**: its decoder starts as the transpose of its encoder, so that relu(xW)Wᵀ is roughly a multiple
#   of x. In `tiny` its explained variance is *below zero* and its score still looks publishable. With a decoder of
#   its own it is worse than zeros: the *tying* does the work, not the dictionary.
# - **Decoder shuffled**: the right latents, the wrong directions. A wrong answer is worse than none.
# - **PCA** is the honest rival, a linear code of the same length. Beside it, "a KL of 0.007" becomes evidence *for*
#   the autoencoder.

# %%
def kl_of(reconstruct, hook_name=HOOK):
    """KL(p‖q) at each counted position, [n, pos-2]."""
    return kl_divergence(p_logits, patched_logits(model, tokens, hook_name, reconstruct))[:, 1:-1].cpu()


kl = kl_of(sae)
kl_pca, kl_twice = (kl_of(suspects[name]) for name in (f"PCA, {K} components", "twice as long"))
claim(f"{sae.k} latents are more faithful than {K} principal components", kl.mean(dim=1), "<", kl_pca.mean(dim=1),
      unit="nats")
claim("twice as long costs more, whatever its score says", kl_twice.mean(dim=1), ">", kl.mean(dim=1), unit="nats")

# %% [markdown]
# ## 6 · The wrong layer
#
# In outputs that a SAELens tutorial once stored, an autoencoder of layer 8 sat at layer 10. The score was
# (11.72 − 4.05) / (11.72 − 3.44) = 0.93, and nobody noticed. The course's function refuses, unless you insist:

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
# In `tiny`, too, the score can look good at a wrong layer: one layer up, with many times the KL.

# %%
claim("one layer too high costs more", kl_of(sae, f"blocks.{LAYER + 1}.hook_resid_pre").mean(dim=1), ">",
      kl.mean(dim=1), unit="nats")

# %% [markdown]
# ## 7 · One mean
#
# Some positions of every batch do not count (BOS, padding). The mean over all that count is not the mean of the
# batches' means, unless they count equally many, and the average of ratios is not the ratio of averages.

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
# ## 8 · How sure?
#
# The tokens of one text are not independent: a hard text is hard all over. So resample whole *sequences*: draw as
# many as there are, with replacement, compute the pooled mean, and repeat. The middle 95 % is the interval.

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

# %% [markdown]
# Here the intervals are nearly the same, as if the tokens were independent. Where whole texts differ (languages,
# code among prose), the tokens' interval can be several times too narrow. Resampling sequences is right in either
# case and costs nothing.
#
# `evaluate_sae` reports every mean with such an interval, over one shared mask, pooled, in nats.
# (`to_frame("bits")` gives bits, of ln 2 = 0.693 nats each.) Of its 23 rows those that we have met:

# %%
report.to_frame().loc[["ce_clean", "ce_sae", "ce_zero", "delta_ce", "kl", "reverse_kl", "reconstruction_score",
                       "explained_variance", "l0"]].round(4)

# %% [markdown]
# ## 9 · Explained variance, right and wrong
#
# Several libraries got this wrong. It is the share of the *variance*, which is measured about the mean:
#
# $$1 - \frac{E\,\lVert\hat x - x\rVert^2}{E\,\lVert x - E\,x\rVert^2}$$

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


def square(v):
    return v.pow(2).sum(dim=-1)                                     # of each token


formulas = {
    "right": explained_variance,
    "about zero": lambda x, x_hat: 1 - square(x_hat - x).mean() / square(x).mean(),
    "mean of the tokens' ratios": lambda x, x_hat: (1 - square(x_hat - x) / square(x - x.mean(dim=0))).mean(),
    "lengths, not squares":
        lambda x, x_hat: 1 - (x_hat - x).norm(dim=1).mean() / (x - x.mean(dim=0)).norm(dim=1).mean(),
    "forgives a shift": lambda x, x_hat: 1 - (x_hat - x).var(dim=0).sum() / x.var(dim=0).sum(),
    "SAEBench's": lambda x, x_hat: 1 - square(x_hat - x).mean() / (
        square(x).mean() - (square(x).mean() / x.shape[1]) ** 2),
}
for name, formula in formulas.items():
    print(f"{name:28} {float(formula(x, x_hat)):.3f}")

# %% [markdown]
# Six formulas, six plausible numbers. (The table above has the first, without each text's last position.)
#
# - *About zero*: the mean activation is not zero, and always answering it gets credit (in `tiny` a fifth of ‖x‖²).
#   SAELens had a form of this until pull request 665; its issue 659 saw 0.98 where the formula before had said
#   0.78.
# - *Mean of ratios*: tokens whose activation lies near the mean get enormous weight. (That formula before, still
#   reported as "legacy".)
# - *Lengths*: the norm of the error where its square belongs.
# - *Forgives a shift*: measures the variance of the error, so a constant error is free. (dictionary_learning.)
# - *SAEBench's* denominator subtracts (E‖x‖² / d)², the square of a mean of squares, which has the wrong unit.
#   Where activations are large it turns negative: make x a hundred times larger and see.
#
# Suppose you had only the function, not its source. Design *inputs* that tell you whether it is wrong. The right
# answers must be known without a formula, and each of the five wrong ones must miss at least one of them.

# %%
@exercise("07.known_cases")
def known_cases(x: Float[Tensor, "tokens d"]) -> dict[str, tuple[Float[Tensor, "tokens d"], float]]:
    """{name: (x_hat, its explained variance)}: reconstructions of x whose explained variance you know beforehand.

    They work for any x, and between them they catch all five wrong formulas: each differs by 0.01 or more somewhere.
    """
    raise NotImplementedError


# %%
cases = known_cases(x)
answers = {name: {case: float(formula(x, x_hat)) for case, (x_hat, _) in cases.items()}
           for name, formula in formulas.items()}
pd.DataFrame({"known beforehand": {case: known for case, (_, known) in cases.items()}} | answers).T.round(3) + 0.0

# %% [markdown]
# Read it by columns. The constant mean exposes what is measured about zero, a shift what is measured about the
# error's own mean, and the identity nothing. The test takes a minute and works on an evaluator that you cannot
# read.
#
# ## 10 · Conventions
#
# Evaluators also differ in which positions they patch and count. The course uses one mask for all.
# `convention=SAELENS` gives SAELens's numbers (we test against it), and `convention=SAEBENCH` is written after its
# source.

# %%
conventions = {"the course": report}
for name, convention in (("SAELens", SAELENS), ("SAEBench", SAEBENCH)):
    conventions[name] = evaluate_sae(model, sae, tokens, convention=convention, everything=False,
                                     resamples=0)
table(conventions, ["reconstruction_score", "ce_sae", "ce_zero", "kl", "kl_score", "mse"])

# %% [markdown]
# - **SAELens** leaves BOS alone in the autoencoder's pass, but its zero ablation wipes out BOS too, so numerator
#   and denominator belong to different experiments. Its KL counts the last position; its cross-entropy cannot, for
#   no token follows. (The last position of `tiny` was never trained: that one can raise a mean of 127 by half.)
# - **SAEBench** replaces BOS too, unless told otherwise. How much that costs depends on whether the autoencoder
#   ever saw a BOS: a difference of the *training* appears as one of faithfulness.
#
# Each is defensible, but compare only numbers made by one rule.
#
# ## 11 · Who pays?
#
# A mean hides where it comes from. By position in the text, in stretches that double, and by token:

# %%
edges = [1, 2, 4, 8, 16, 32, 64, 127]
stretches = [(low, min(high, LENGTH - 1)) for low, high in zip(edges, edges[1:]) if low < LENGTH - 1]
rows = []
for low, high in stretches:
    part = per_token[:, low:high]
    rows.append([part.mean(), *bootstrap_interval(part, torch.ones_like(part, dtype=torch.bool), draws)])
means, lows, highs = torch.tensor(rows).T
early, late = kl[:, :7].mean(dim=1), kl[:, LENGTH // 4:].mean(dim=1)
claim("the KL is larger later in the text than at its first seven positions", late, ">", early, unit="nats")
plot_by_position({"mean KL(p‖q)": means, "2.5 %": lows, "97.5 %": highs}, "nats per token",
                 x=torch.tensor([(low * (high - 1)) ** 0.5 for low, high in stretches]),
                 title=f"{MODEL}: at the start there is little to lose")

# %%
def share_of_top(values, part=0.01):
    """What share of the sum the largest hundredth of the values has."""
    ordered = values.flatten().sort(descending=True).values
    return float(ordered[:max(1, round(part * len(ordered)))].sum() / ordered.sum())


resampled_shares = torch.tensor([share_of_top(kl[row]) for row in draws])
interval = resampled_shares.quantile(torch.tensor([0.025, 0.975])).tolist()
claim("one token in a hundred has more of the KL than if it were exponentially distributed",
      (share_of_top(kl), *interval), ">", 0.01 * (1 + torch.tensor(100.0).log().item()), unit="of the sum")
if MODEL == "tiny":
    after_the = torch.isin(tokens[:, 1:-1].cpu(), torch.tensor([StoryLanguage().ids[word] for word in ("the", "The")]))
    after, other = ((kl * where).sum(dim=1) / where.sum(dim=1) for where in (after_the, ~after_the))
    print(f"after 'the': {after_the.float().mean():.0%} of the tokens, {kl[after_the].sum() / kl.sum():.0%} of the KL")
    claim("a token after 'the' costs more than one elsewhere", after, ">", other, unit="nats")
for place in kl.flatten().topk(6).indices.tolist():
    row, position = place // kl.shape[1], place % kl.shape[1] + 1
    before, after = tokens[row, max(0, position - 9):position + 1].tolist(), tokens[row, position + 1:position + 2].tolist()
    print(f"{kl[row, position - 1]:5.2f} nats  {model.tokenizer.decode(before)!r} -> {model.tokenizer.decode(after)!r}")

# %% [markdown]
# In `tiny` the KL is nearly 0 at the first positions, where the stream carries little to lose, and some thirty
# times larger later. And the mean *is* a few tokens. With an exponential distribution the largest hundredth would
# hold $0.01\,(1 + \ln 100)$ = 5.6 % of the sum; here it is about ten times that. A token after "the", where the model
# must remember which thing, costs several times as much as another, though the dearest of all is of another kind. A
# fine mean can hide the loss of just that.
#
# ## 12 · Which of two is better?
#
# The same k at every layer. At which one does the autoencoder cost least?

# %%
shipped = {name: load_shipped_sae(MODEL, name) for name in shipped_saes(MODEL) if name.startswith("topk")}
by_layer = evaluate_saes(model, shipped, tokens, everything=False)
if len(by_layer) > 1:
    display(table(by_layer, ["reconstruction_score", "delta_ce", "kl", "explained_variance", "ce_zero"]))
    for name, each in by_layer.items():
        low, high = each.intervals["kl"]
        print(f"{name}: KL {each.kl:.4f} nats, interval {low:.4f} to {high:.4f}")

# %% [markdown]
# In `tiny` layers 2 and 3 have the same score, because the score sees only ΔCE, which is nearly the same. Their KLs
# differ by half, but the intervals overlap. Is the difference chance? Two intervals side by side cannot say: both
# autoencoders read the *same* texts, hard for both or easy for both.

# %%
@exercise("07.paired_interval")
def paired_interval(
    first: Float[Tensor, "n pos"], second: Float[Tensor, "n pos"], mask: Bool[Tensor, "n pos"],
    draws: Int[Tensor, "resample n"],
) -> tuple[float, float, float]:
    """By how much `first` exceeds `second` at the counted positions, and a 95 % interval for that: (difference, low, high).

    Both were measured on the same texts. `draws` is as in `bootstrap_interval`.
    """
    raise NotImplementedError


# %%
neighbour = f"topk-{LAYER + 1}"
if neighbour in shipped_saes(MODEL):
    rival = load_shipped_sae(MODEL, neighbour).to(model.cfg.device)
    rival_logits = patched_logits(model, tokens, rival.hook_name, rival)
    rival_delta = delta_cross_entropy(p_logits, rival_logits, tokens)[:, 1:].cpu()
    rival_kl = kl_divergence(p_logits, rival_logits)[:, 1:-1].cpu()
    everywhere = torch.ones_like(kl, dtype=torch.bool)
    for name, theirs, ours in (("KL", rival_kl, kl), ("ΔCE", rival_delta, delta.cpu())):
        difference, low, high = paired_interval(theirs, ours, everywhere, draws)
        print(f"{name}: layer {LAYER + 1} minus layer {LAYER}: {difference:.4f} nats, interval {low:.4f} to {high:.4f}")
    claim(f"layer {LAYER + 1}'s autoencoder costs more KL than layer {LAYER}'s", rival_kl.mean(dim=1), ">",
          kl.mean(dim=1), unit="nats")

# %% [markdown]
# In `tiny` the paired interval of the KLs does not hold 0: layer 3 costs more. That of the ΔCEs does, and it is as
# wide, although the difference is several times smaller. On these 48 texts ΔCE cannot tell the two apart, nor can a
# score built on it. (Besides, the scores' landmark `ce_zero` moves from layer to layer.)
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
# tenth of the model's whole cross-entropy. (ΔCE and KL agree here within their intervals, and not by accident:
# SmolLM2 itself wrote this text. See lesson 08.)
#
# The same call works on GPT-2 small with a published autoencoder, wherever the Hugging Face hub answers. (Compare
# with published figures only for the same autoencoder *and* text.)

# %%
TRY_GPT2 = False            # True downloads 600 MB, once
if TRY_GPT2:
    gpt2 = load_model("gpt2-small")
    published = load_pretrained_sae("gpt2-small-res-jb", "blocks.10.hook_resid_pre")
    display(evaluate_sae(gpt2, published, sample_text(gpt2, n=8, length=64), batch_size=2).to_frame())

# %% [markdown]
# ## On your own
#
# How much of the faithfulness comes from *training*, and how much from having $k$ numbers for each token and a
# dictionary at all? Hand in one claim with its number and interval, its control, what would have refuted it, and
# what it does not show.

# %% tags=["solution-only"]
random_dictionary = SparseAutoencoder(sae.d_in, sae.d_sae, "topk", k=sae.k, hook_name=HOOK, seed=1).to(model.cfg.device)
random_dictionary.b_dec.data.copy_(centre)
kl_random = kl_of(random_dictionary)
claim("a random dictionary with as many active latents is less faithful", kl_random.mean(dim=1), ">", kl.mean(dim=1),
      unit="nats")
print(f"score of the random dictionary: "
      f"{evaluate_sae(model, random_dictionary, tokens, everything=False, resamples=0).reconstruction_score:.2f}")

# %% [markdown] tags=["solution-only"]
# *A model answer.* The control keeps the number of latents, k, the mean and the tied start, and drops only the
# training. Equal KLs would have refuted that training matters. (Note the random one's score all the same.) It does
# not show that the trained directions mean anything, nor that a better random dictionary (scaled, or with an
# encoder that searches for the best k) would not come closer.

# %% [markdown]
# ## What this does not show
#
# - That a faithful autoencoder is *interpretable*: the identity is perfectly faithful.
# - That a small mean KL is harmless: a few tokens make it, and they may be the ones you care about.
# - Whether this KL is much for an error of this length. Lesson 08 compares with random errors as long.
# - Faithfulness on other text. Lesson 09 asks about the induction circuit instead.
#
# ## Summary
#
# - Patch the reconstruction in once, keep BOS, and compare predictions.
# - ΔCE looks at the actual next token and has both signs; KL(p‖q) looks at all tokens and is never negative.
# - The score is ΔCE divided by what an ablation costs. The landmark is far off, so near 1 everything looks alike,
#   and it differs by layer. Put PCA beside it.
# - One mask, pooled means, sequence-level intervals, units. Two autoencoders on one text: a paired interval.
# - Test every metric on inputs whose answer is known: the identity, zero, the mean, a shift, half way, the wrong
#   layer.
#
# Sources: Gao et al., [arXiv 2406.04093](https://arxiv.org/abs/2406.04093), section 4.1, downstream loss;
# Rajamanoharan et al., [arXiv 2404.16014](https://arxiv.org/abs/2404.16014), relative reconstruction bias;
# explained variance in SAELens: pull requests [443](https://github.com/decoderesearch/SAELens/pull/443) and
# [665](https://github.com/decoderesearch/SAELens/pull/665), [issue
# 659](https://github.com/decoderesearch/SAELens/issues/659); conventions:
# [SAEBench](https://github.com/adamkarvonen/SAEBench) (evals/core/main.py) and
# [dictionary_learning](https://github.com/saprmarks/dictionary_learning) (evaluation.py); the wrong layer: outputs
# stored in a SAELens tutorial at commit 6754e650.
#
# Next: **08 · The arguments**: is ΔCE the KL, and how large an error should we expect?

# %% tags=["exercise-only"]
progress("07")
