# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 06 · Sparse autoencoders
#
# **The question.** Lessons 02 to 05 took a model apart by its heads. But what is *in* the residual stream that the
# heads read? A vector of 256 numbers must carry the present word, who acts, whether a quotation is open and much
# else, perhaps more facts than it has axes. If each fact has a direction of its own, and few facts hold at once,
# then a **sparse autoencoder** (SAE) can find the directions. It writes each activation as a sum of a few entries
# of a large dictionary.
#
# You will build one, train it, meet its four common kinds, look at what it found, and silence a piece of it. And
# there is an answer key, rare in interpretability: `tiny`'s stories come with labels.
#
# **You need:** lesson 00. Lessons 01 to 05 help, but nothing here depends on them.

# %% tags=["parameters"]
import os

import pandas as pd
import torch
from IPython.display import display
from jaxtyping import Bool, Float, Int
from torch import Tensor

from course_utils.claims import claim
from course_utils.exercises import exercise, hint, predict, progress, reveal, solution
from course_utils.faithfulness import evaluate_sae, evaluate_saes
from course_utils.language import StoryLanguage
from course_utils.latents import auc as fast_auc
from course_utils.latents import best_latents, latent_activations, linear_direction, story_labels, token_labels
from course_utils.measured import measured
from course_utils.models import load_model, load_real_model
from course_utils.passes import CleanRun, collect_activations, put_back
from course_utils.sae import SparseAutoencoder
from course_utils.sae_files import load_shipped_sae, middle_layer, shipped_saes, topk_sae_for
from course_utils.sae_training import TrainingConfig, fit
from course_utils.text import reads_stories, sample_text
from course_utils.viz import latent_dashboard, plot_bars, plot_curves, plot_histogram, plot_points

MODEL = os.environ.get("COURSE_MODEL", "tiny")      # or write a name here, such as "smollm2-135m"

# %%
model = load_model(MODEL)
LAYER = middle_layer(model)
HOOK = f"blocks.{LAYER}.hook_resid_pre"             # the residual stream on its way into the middle layer
LENGTH, D_SAE = min(128 if MODEL == "tiny" else 64, model.cfg.n_ctx), 2 * model.cfg.d_model
TRAIN, TEST, STEPS = 1, 100, 300 if MODEL == "tiny" else 60         # seeds of the texts; steps of training
train_tokens = sample_text(model, n=400 if MODEL == "tiny" else 24, length=LENGTH, seed=TRAIN)
test_tokens = sample_text(model, n=64 if MODEL == "tiny" else 8, length=LENGTH, seed=TEST)
activations = collect_activations(model, HOOK, train_tokens, exact=MODEL == "tiny")
test_activations = collect_activations(model, HOOK, test_tokens)
print(f"{MODEL}, {HOOK}: {len(activations):,} activations of {activations.shape[1]} numbers to learn from")

# %% [markdown]
# Why does `collect_activations` leave out the first position?

# %%
_, cache = model.run_with_cache(test_tokens[:8], names_filter=[HOOK])
norms = cache[HOOK].norm(dim=-1).mean(dim=0)        # [pos]
print(f"mean norm at BOS {norms[0]:.1f}, at position 1 {norms[1]:.1f}, later {norms[2:].mean():.1f}")

# %% [markdown]
# In most models the activation at BOS is unlike all others, often far larger: heads park their unused attention
# there. One such vector in every sequence would take up latents and spoil every mean. So this course, like much of
# the field, leaves BOS out of training and measuring.
#
# ## 1 · The autoencoder
#
# An activation x becomes **latents** f, one for each entry of the dictionary, and these a **reconstruction**:
#
# $$f = \mathrm{relu}\big((x - b_{dec})\,W_{enc} + b_{enc}\big) \qquad \hat{x} = f\,W_{dec} + b_{dec}$$
#
# Latents are not negative, and most should be 0. Row $i$ of `W_dec` is the direction of latent $i$, and $f_i$ says
# how much of it is in $x$. `b_dec` is about the mean activation.

# %%
@exercise("06.encode")
def encode(
    x: Float[Tensor, "... d_in"], W_enc: Float[Tensor, "d_in d_sae"], b_enc: Float[Tensor, "d_sae"],
    b_dec: Float[Tensor, "d_in"],
) -> Float[Tensor, "... d_sae"]:
    """The latents of a ReLU autoencoder, for any number of leading axes and in the dtype that comes in."""
    raise NotImplementedError


# %% [markdown]
# Training should ask for a small error and few latents. "Few" cannot be differentiated, so the oldest recipe
# (Bricken et al., 2023) makes the *sum* of the latents costly (the **L1 penalty**):
#
# $$\text{loss} = \underset{\text{tokens}}{\text{mean}}\Big(\lVert\hat{x} - x\rVert^2 + \text{sparsity}\cdot\sum_i |f_i|\Big)$$
#
# Both terms are sums over components and means over tokens. SAELens (until pull request 711) and SAEBench divided
# the squared error by the number of tokens twice; in dictionary_learning "l2_loss" is the norm, not its square. An
# "MSE" says little until you know what was divided by what.

# %%
@exercise("06.sae_loss")
def sae_loss(
    x: Float[Tensor, "tokens d_in"], x_hat: Float[Tensor, "tokens d_in"], latents: Float[Tensor, "tokens d_sae"],
    sparsity: float,
) -> Float[Tensor, ""]:
    """Mean over tokens of the squared error (summed over components) plus sparsity times Σ|f|."""
    raise NotImplementedError


# %% [markdown]
# One can cheat: halve all latents, double all rows of `W_dec`, and only the penalty changes. So after every step
# each row of `W_dec` is scaled back to norm 1.
#
# ## 2 · Train one
#
# Your two functions are all that a training loop needs. (It computes in float64, as `tiny` did for the activations,
# so that you see the numbers that we saw. Processors round differently, and training turns a difference in the
# seventh digit into one in the fourth.)

# %%
scale = activations.pow(2).mean().sqrt()                            # so that one learning rate fits every model


def new_sae(kind, k=None, seed=0):
    """An untrained autoencoder, and the optimizer that trains it."""
    sae = SparseAutoencoder(model.cfg.d_model, D_SAE, kind, k=k, hook_name=HOOK, seed=seed).double()
    with torch.no_grad():
        sae.b_dec.copy_(activations.mean(dim=0) / scale)
    return sae, torch.optim.Adam(sae.parameters(), lr=3e-3, fused=True)


def batches(steps, batch=512):
    rng = torch.Generator().manual_seed(0)
    for _ in range(steps):
        yield activations[torch.randint(0, len(activations), (batch,), generator=rng)].double() / scale


@torch.no_grad()
def finished(sae):
    """The autoencoder, for activations as they are."""
    sae.b_dec *= scale
    sae.b_enc *= scale
    return sae.float().requires_grad_(False)


def train(sparsity, steps):
    """A ReLU autoencoder, and for each step the error as a share of ‖x‖² and the number of active latents."""
    sae, optimizer = new_sae("relu")
    seen = []
    for x in batches(steps):
        latents = encode(x, sae.W_enc, sae.b_enc, sae.b_dec)
        x_hat = latents @ sae.W_dec + sae.b_dec
        loss = sae_loss(x, x_hat, latents, sparsity)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
            error = (x_hat - x).pow(2).sum() / x.pow(2).sum()
        seen.append((error.item(), (latents > 0).sum(dim=1).float().mean().item()))
    return finished(sae), torch.tensor(seen)


my_sae, seen = train(sparsity=2.0, steps=STEPS)
plot_curves([("squared error / ‖x‖²", seen[:, 0]), ("active latents (L0)", seen[:, 1])], xlabel="step",
            title=f"{MODEL}: a ReLU autoencoder in training")

# %% [markdown]
# At first the error (left) drops while hundreds of latents are on. Then the penalty bites, L0 (right) collapses,
# and the error *rises* before the few that are left learn to do the work.

# %%
mine = evaluate_sae(model, my_sae, test_tokens, everything=False, resamples=0)
print(f"on unseen text: {mine.l0:.2f} of {my_sae.d_sae} latents active, "
      f"{mine.explained_variance:.2%} of the variance explained")
measured("SAE trained live: explained variance", mine.explained_variance, unit="share")

# %% [markdown]
# **L0** is the mean number of latents that are not 0. Explained variance is 1 for a perfect reconstruction and 0
# for one that always answers the mean. Lesson 07 asks how to measure it right, and whether to.
#
# ## 3 · A dial, not a number
#
# More latents can always buy a smaller error, so neither number means anything alone. Turn the dial, and compare
# autoencoders by the *curve*.
#
# **Predict before you look:** the penalty asks for small latents. Will the reconstructions come out too long,
# right, or too short: what is the mean of ‖x̂‖ / ‖x‖ for the autoencoder above?

# %%
predict("06.l2_ratio", None, unit="")

# %%
reveal("06.l2_ratio", mine.l2_ratio)
dial = [(mine.l0, mine.explained_variance)]
for sparsity in (1.0, 4.0):
    trained, _ = train(sparsity, STEPS)
    report = evaluate_sae(model, trained, test_tokens, everything=False, resamples=0)
    dial.append((report.l0, report.explained_variance))
    print(f"sparsity {sparsity:3}: L0 {report.l0:5.1f}, explained variance {report.explained_variance:.3f}, "
          f"‖x̂‖/‖x‖ {report.l2_ratio:.3f}, bias {report.relative_reconstruction_bias:.3f}")

# %% [markdown]
# Too short: an L1 penalty pushes on every latent that is on, right or wrong. The other kinds below exist to avoid
# this **shrinkage**. (The best least-squares reconstruction is a little short, too, unless it is perfect. The last
# column, E‖x̂‖² / E[x·x̂], allows for that and is 1 for the best possible length.) That L1 is to blame is so far a
# story. Section 5 has the control.
#
# ## 4 · Raw or normalised inputs?
#
# A squared error cares most about the longest vectors, so a few long ones can run the training. Many autoencoders
# therefore see every activation *rescaled to the same norm*, $\sqrt{d_{in}}$, and multiply their answer by the
# number they divided by. Both directions count: SAELens once reported the difference of the *scaled* activation and
# the *unscaled* reconstruction as the error.

# %%
@exercise("06.reconstruct_rescaled")
def reconstruct_rescaled(x: Float[Tensor, "tokens d_in"], autoencoder) -> Float[Tensor, "tokens d_in"]:
    """The reconstruction of x by an autoencoder that was made for activations of norm √d_in.

    `autoencoder(y)` reconstructs activations y [tokens, d_in]. The answer is in the scale of x.
    """
    raise NotImplementedError


# %%
norms = test_activations.norm(dim=1)
print(f"norms of the activations: from {norms.quantile(0.01):.1f} to {norms.quantile(0.99):.1f} "
      f"(the middle 98 %), median {norms.median():.1f}")
names = shipped_saes(MODEL)
saes = {name: load_shipped_sae(MODEL, name) for name in names if name.endswith(f"-{LAYER}")}
saes["yours"] = my_sae
reports = evaluate_saes(model, saes, test_tokens, everything=False, resamples=0)


def table(columns):
    rows = {name: [getattr(report, column) for column in columns] for name, report in reports.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).round(3)


table(["l0", "mse", "explained_variance"])

# %% [markdown]
# (`mse` is summed over components, hence the hundreds.)
#
# Two of `tiny`'s ReLU autoencoders were trained alike, but `relu-2` saw raw activations and `relu-normalized-2`
# rescaled ones. Hold something fixed when you compare: they differ in L0 *and* in error, so neither column alone
# says which is better. We can compare *where* each errs. The inner part of `relu-normalized-2`, made for
# activations of norm √d_in, gets its scale from your function.

# %%
def inner(y):
    """What is left of `relu-normalized-2` without its rescaling."""
    sae = saes["relu-normalized-2"]
    return encode(y, sae.W_enc, sae.b_enc, sae.b_dec) @ sae.W_dec + sae.b_dec


def error_share(x_hat, x):
    """Squared error as a share of ‖x‖², over all of these activations."""
    return float((x_hat - x).pow(2).sum() / x.pow(2).sum())


def text_means(values, where):
    """The mean over the positions that `where` marks, for each text that has any."""
    some = where.any(dim=1)
    return ((values * where).sum(dim=1) / where.sum(dim=1))[some].cpu()


if "relu-normalized-2" in saes:
    x_hats = {"raw (relu-2)": saes["relu-2"](test_activations),
              "rescaled (relu-normalized-2)": reconstruct_rescaled(test_activations, inner)}
    fifths = norms.argsort().chunk(5)                               # of the test activations, short ones first
    by_norm = {name: {f"‖x‖ about {norms[part].mean():.0f}": error_share(x_hat[part], test_activations[part])
                      for part in fifths} for name, x_hat in x_hats.items()}
    shares = [(x_hat - test_activations).pow(2).sum(dim=1) / norms**2 for x_hat in x_hats.values()]
    short = norms < norms.quantile(0.2)
    raw, rescaled = (text_means(*(each.unflatten(0, (len(test_tokens), -1)) for each in (share, short)))
                     for share in shares)
    claim("short activations come out better when inputs are rescaled", rescaled, "<", raw, unit="of ‖x‖²")
    display(plot_bars(by_norm, "squared error as a share of ‖x‖²", title="Rescaling moves error from short to long"))

# %% [markdown]
# Trained on raw activations, an autoencoder spends its latents where errors are expensive, and short activations
# come out worst (with both, but more so here). Rescaled inputs share the error out more evenly, at the cost of the
# long ones. Which is better depends on your question.
#
# ## 5 · Three more ways to be sparse
#
# **TopK** (Gao et al., 2024): keep the k largest pre-activations (those of them that are positive) and drop the
# rest. No penalty, no shrinkage, and L0 is what you ask for.

# %%
@exercise("06.top_k")
def top_k(pre: Float[Tensor, "... d_sae"], k: int) -> Float[Tensor, "... d_sae"]:
    """The k largest entries of each row, those of them that are positive; 0 elsewhere.

    Of equal entries at the end of the k, any.
    """
    raise NotImplementedError


# %% [markdown]
# This training step is yours. What changes from the ReLU loop, and what must stay?

# %%
@exercise("06.topk_step")
def topk_step(sae, optimizer, x: Float[Tensor, "tokens d_in"]) -> float:
    """One step of training a TopK autoencoder. Returns the loss before the step: the squared error, as in `sae_loss`.

    `sae` has W_enc, b_enc, W_dec, b_dec and k; `optimizer` has these four parameters. Afterwards `sae` is one step
    further, and ready for the next one.
    """
    raise NotImplementedError


# %%
def train_topk(k, steps, seed=0):
    sae, optimizer = new_sae("topk", k, seed)
    for x in batches(steps):
        topk_step(sae, optimizer, x)
    return finished(sae)


def by_text(sae):
    """For each test text: E‖x̂‖² / E[x·x̂], and the squared error as a share of ‖x‖²."""
    x = test_activations.unflatten(0, (len(test_tokens), -1))       # [text, pos, d_model]
    x_hat = sae(x)
    return (x_hat.pow(2).sum(dim=(1, 2)) / (x * x_hat).sum(dim=(1, 2)),
            (x_hat - x).pow(2).sum(dim=(1, 2)) / x.pow(2).sum(dim=(1, 2)))


my_topk = train_topk(k=max(1, round(mine.l0)), steps=STEPS)         # as many latents as yours, and as many steps
(bias, error), (bias_topk, error_topk) = by_text(my_sae), by_text(my_topk)
claim("the L1 penalty shrinks, and TopK does not", bias, "<", bias_topk)
claim("with as many latents and steps TopK errs less", error_topk, "<", error, unit="of ‖x‖²")

# %% [markdown]
# That is section 3's control: the same data, start, latents and steps, but no L1.
#
# **JumpReLU** (Rajamanoharan et al., 2024): each latent has a threshold θ of its own. At or below it the latent is
# 0; above it, it keeps *all* of its value: `pre * (pre > threshold)`. The penalty counts the active latents. Its
# gradient is 0 almost everywhere, so training uses an estimate, written out in `course_utils.sae.JumpReLU`.
#
# **Gated** (Rajamanoharan et al., 2024): a gate decides *whether* a latent is on, and a magnitude says *how much*.
# The penalty rests on the gate alone, so it cannot shrink the magnitude. Both read the same pre-activation, each
# with its own bias; the magnitude also has its own scale $e^{r_{mag}}$. With $[\cdot]$ for 1 where that is true and
# 0 elsewhere:
#
# $$f = [\,pre + b_{gate} > 0\,]\cdot\mathrm{relu}\big(pre\cdot e^{r_{mag}} + b_{mag}\big)$$

# %%
@exercise("06.gated")
def gated(
    pre: Float[Tensor, "... d_sae"], b_gate: Float[Tensor, "d_sae"], b_mag: Float[Tensor, "d_sae"],
    r_mag: Float[Tensor, "d_sae"],
) -> Float[Tensor, "... d_sae"]:
    """The latents of a gated autoencoder, from its pre-activations (x − b_dec) W_enc."""
    raise NotImplementedError


# %%
pre = torch.linspace(-1, 2, 301)[:, None]
half, one = torch.tensor([0.5]), torch.tensor([1.0])
shapes = {"ReLU": pre.relu(), "JumpReLU, θ = 0.5": pre * (pre > half),
          "gated, b_gate = −0.5, b_mag = −0.2": gated(pre, -half, -0.2 * one, 0 * one)}
display(plot_curves([("latent", {name: shape[:, 0] for name, shape in shapes.items()})], x=pre[:, 0],
                    xlabel="pre-activation", title="What becomes of a pre-activation"))
print("gated with r_mag = 0 and b_mag = 0 is JumpReLU:",
      torch.equal(gated(pre, -half, 0 * one, 0 * one), pre * (pre > half)))

# %% [markdown]
# With r_mag = 0 and b_mag = 0 the two kinds differ only in how they are trained. Now the middle layer's
# autoencoders side by side:

# %%
reports["your TopK"] = evaluate_sae(model, my_topk, test_tokens, everything=False, resamples=0)
table(["l0", "explained_variance", "relative_reconstruction_bias"])

# %%
print(f"yours learned from {STEPS * 512:,} examples")
plot_points({name: (each.l0, each.explained_variance) for name, each in reports.items()},
            "active latents for each token (L0)", "explained variance",
            line=dial, line_label="yours, other sparsities, as many steps",
            title=f"{MODEL}: what lies above and to the left is better")

# %% [markdown]
# In `tiny` the ReLU kinds shrink and the others do not (third column of the table). JumpReLU explains as much as
# ReLU with a third fewer latents, and Gated explains more with fewer. The shipped TopK explains most but uses most
# latents, and one point per kind cannot say whether its curve lies above the others. Your two were trained alike
# and can be compared. What separates the shipped ones from yours is mostly training: they had 4,000 steps of
# 1,024 examples.
#
# ## 6 · Dead latents
#
# A latent that is active nowhere is **dead**: it gets no gradient, so nothing wakes it. On more text a rare latent
# may turn out to be alive.

# %%
@exercise("06.dead_latents")
def dead_latents(latents: Float[Tensor, "n pos d_sae"], mask: Bool[Tensor, "n pos"]) -> Bool[Tensor, "d_sae"]:
    """True for each latent that is 0 wherever the mask is True."""
    raise NotImplementedError


# %%
sae = topk_sae_for(model)
latents = latent_activations(model, sae, test_tokens)               # [n, pos, d_sae]
counted = torch.ones_like(test_tokens, dtype=torch.bool)
counted[:, 0] = False
for rows in (1, 8, len(test_tokens)):
    share = dead_latents(latents[:rows], counted[:rows].cpu()).float().mean()
    print(f"on {rows:3} texts of {LENGTH} tokens: {share:.1%} of the latents look dead")
active_share = (latents[:, 1:] != 0).float().mean(dim=(0, 1))
plot_histogram(active_share[active_share > 0].log10(), "share of positions where it is active (power of ten)",
               "latents", title=f"{MODEL}: most latents are rare")

# %% [markdown]
# There are two remedies. *Resampling* gives dead latents new directions, taken from badly reconstructed
# activations. The *auxiliary loss* (Gao et al.) lets the dead practise on what the living leave over.
# `course_utils.sae_training` does the second, here on a dictionary half of which was made to die, by encoder
# columns too small to be among the k largest.

# %%
def starved(revive):
    """Train from a start at which half of the latents are dead; return the share of dead ones on the way."""
    sae = SparseAutoencoder(model.cfg.d_model, D_SAE, "topk", k=16, hook_name=HOOK).double()
    with torch.no_grad():
        sae.W_enc[:, ::2] *= 0.01                                   # too small ever to be among the largest
    config = TrainingConfig(D_SAE, "topk", k=16, steps=STEPS // 2, batch=256, warm_up=20, dead_after=20,
                            revive=revive)
    return [row["dead"] for row in fit(sae, activations, config).training_log]


for name, revive in (("without", 0.0), ("with", 1 / 32)):
    print(f"{name:7} the auxiliary loss, share of dead latents every 50 steps:",
          "  ".join(f"{share:.0%}" for share in starved(revive)))

# %% [markdown]
# ## 7 · What did it find?
#
# A latent is a hypothesis, "this direction means something". Look first where it is most active.

# %%
@exercise("06.top_activations")
def top_activations(latent: Float[Tensor, "n pos"], k: int) -> Int[Tensor, "k 2"]:
    """The (sequence, position) of the k largest values, largest first, at most one in each sequence.

    Only places where the latent is active (above 0) count, so there may be fewer than k, or none: then [0, 2].
    """
    raise NotImplementedError


# %%
some = int((active_share - 0.02).abs().argmin())                    # active about twice in a hundred tokens
for row, position in top_activations(latents[..., some], k=5).tolist():
    before = model.tokenizer.decode(test_tokens[row, max(0, position - 8):position].tolist())
    print(f"{latents[row, position, some]:6.2f}  {before!r}  ->  "
          f"{model.tokenizer.decode([int(test_tokens[row, position])])!r}")

# %% [markdown]
# The strongest places are where a latent looks best. A **dashboard** also shows weaker ones, how often it is
# active, and which next tokens its direction promotes. Hover over a token for its value.

# %%
latent_dashboard(model, sae, latents, test_tokens, some)

# %% [markdown]
# Examples show when a latent is *on*. Whether the model *uses* it takes an experiment: subtract the latent's share,
# $f_i$ times its row of `W_dec`, from the stream, let the model continue, and watch the token that the direction
# promotes most. The controls subtract, at the same places, other directions of the same length, random ones and other
# latents', and watch the tokens that *they* promote most.
#
# **Predict before you look:** at the places where this latent is on, by how many nats does the log-probability of
# its first promoted token fall, on average?

# %%
predict("06.silenced", None)


# %%
@torch.no_grad()
def silence(latent, texts=test_tokens[:32], draws=10):
    """By text, for the latent's own direction and for others as long: its promoted token's change, and KL(p‖q), in nats."""
    own, amount = sae.W_dec[latent].to(model.W_U), latents[:len(texts), :, latent, None].to(model.W_U)
    rng = torch.Generator().manual_seed(0)
    directions = {"own": own[None], "random": torch.randn(draws, len(own), generator=rng).to(own),
                  "others": sae.W_dec[torch.randperm(sae.d_sae, generator=rng)[:draws]].to(own)}
    clean, on = CleanRun(model, texts), amount[..., 0] > 0          # a pass that can be continued from any layer
    log_p = clean.logits(clean.residuals[-1][on]).log_softmax(-1)   # [place where it is on, vocab]
    promoted = int((own @ model.W_U).argmax())
    found = {"token": model.tokenizer.decode([promoted]), "p": log_p[:, promoted].exp()}
    for name, rows in directions.items():
        change, kl = [], []
        for direction in rows / rows.norm(dim=1, keepdim=True) * own.norm():
            final = clean.continue_from(LAYER, clean.residuals[LAYER] - amount * direction)
            log_q = clean.logits(final[on]).log_softmax(-1)
            change.append(text_means(put_back([(log_q - log_p)[:, (direction @ model.W_U).argmax()]], on), on))
            kl.append(text_means(put_back([(log_p.exp() * (log_p - log_q)).sum(dim=-1)], on), on))
        found |= {name: torch.stack(change).mean(dim=0), f"KL, {name}": torch.stack(kl).mean(dim=0)}
    return found


effect = silence(some)
reveal("06.silenced", -effect["own"].mean())
print(f"latent {some} promotes {effect['token']!r}; its direction changes that token's log-probability by "
      f"{effect['own'].mean():.1f} nats, ten other latents' directions that of theirs by {effect['others'].mean():.1f}")
print(f"KL where it is on, own direction: {effect['KL, own'].mean():.1g} nats, random ones: {effect['KL, random'].mean():.1g}")
print(f"{effect['token']!r} has a probability below 1 % at {(effect['p'] < 0.01).float().mean():.0%} of these places")
claim(f"without latent {some} its token loses more than the tokens of random directions do", effect["own"], "<",
      effect["random"], unit="nats")

# %% [markdown]
# So in `tiny` the latent pushes its token. Much of that is by construction: a random direction pushes its own token a
# third as much, another latent's about half. And is it important here? The KL says how much the whole prediction moved:
# next to nothing, hardly more than along random directions. The promoted token was unlikely at nearly all of these
# places, and half a nat of very little is very little. Put both numbers beside a latent's name.
#
# ## 8 · The answer key
#
# People see patterns in examples even where there are none. With labels we can ask how well *every* latent tells
# labelled positions from the others. Here is the beginning of one story under each question, the words with
# the answer yes in brackets.

# %%
def questions(tokens, seed, rows):
    """{question: (the answer, whether there is one)} at every position of the first rows but BOS; each [row, pos-1]."""
    if reads_stories(model):
        labels, known = story_labels(StoryLanguage(seed).sample(*tokens.shape, truth=False))
    else:
        labels, known = token_labels(model, tokens), {}
    return {name: (label[:rows, 1:].cpu(), known.get(name, torch.ones_like(label))[:rows, 1:].cpu())
            for name, label in labels.items()}


def two_sided(answers):
    return {name for name, (label, known) in answers.items() if 0 < label[known].float().mean() < 1}


ROWS = min(64, len(train_tokens))                                   # of the text that latents are chosen on
choose, judge = questions(train_tokens, TRAIN, ROWS), questions(test_tokens, TEST, len(test_tokens))
asked = [name for name in judge if name in two_sided(choose) & two_sided(judge)]
row = int(sum(judge[name][0][:, :24].any(dim=1).int() for name in asked).argmax())  # with the most kinds of yes
words = [model.tokenizer.decode([token]).strip() for token in test_tokens[row, 1:25].tolist()]
for name in asked:
    yes = judge[name][0][row].tolist()
    line = " ".join(f"[{word}]" if on else word for word, on in zip(words, yes)).replace("] [", " ")
    print(f"{name:30} {line}")

# %% [markdown]
# The **AUC** measures how well a latent answers, without a threshold. It is the probability that the latent is
# larger at a random labelled position than at a random other one, a tie counting half. 1 is perfect, ½ knows
# nothing, and 0 is perfect upside down. A sparse latent is 0 nearly everywhere, so ties are most of the work.

# %%
@exercise("06.auc")
def auc(latents: Float[Tensor, "m d_sae"], labels: Bool[Tensor, "m"]) -> Float[Tensor, "d_sae"]:
    """For each latent: P(f₊ > f₋) + ½ P(f₊ = f₋) for a random labelled and a random other position.

    m will be about 8,000. For one latent all pairs fit in memory; for many, sort.
    """
    raise NotImplementedError


# %% [markdown]
# The best of hundreds of latents looks good by chance alone. So the latent is *chosen* on one text and *judged* on
# another. (Where the best latent is off when the answer is yes, we flip its sign.)

# %%
choose_latents = latent_activations(model, sae, train_tokens[:ROWS])[:, 1:]         # [row, pos-1, d_sae]
judge_latents = latents[:, 1:]
chosen = best_latents(choose_latents.flatten(0, 1), {name: choose[name][0].flatten() for name in asked},
                      known={name: choose[name][1].flatten() for name in asked})


def judged(values, name):
    """The AUC of one number for each position of the test text."""
    label, known = judge[name]
    return float(fast_auc(values[known][:, None], label[known]))


def upright(latent, score):
    return judge_latents[..., int(latent)] * (1 if score > 0.5 else -1)


key = pd.DataFrame({
    "share labelled": {name: judge[name][0][judge[name][1]].float().mean().item() for name in asked},
    "latent": chosen["latent"],
    "chosen with AUC": chosen["AUC"].sub(0.5).abs() + 0.5,
    "AUC": {name: judged(upright(*chosen.loc[name, ["latent", "AUC"]]), name) for name in asked},
})
best = key["AUC"].idxmax()
check = float(auc(upright(*chosen.loc[best, ["latent", "AUC"]])[judge[best][1]][:, None], judge[best][0][judge[best][1]]))
print(f"the best of all: {best!r}, by latent {key.loc[best, 'latent']}; your AUC {check:.3f}")
key.round(3)

# %% [markdown]
# Most of these are well below 1. Before you call that bad:
#
# **Predict before you look:** a latent is on at 2 % of the positions, at *labelled ones only*. The label holds at
# 53 % of the positions, as "a woman acts" does. What is the latent's AUC?

# %%
predict("06.ceiling", None, unit="")

# %%
positions = torch.arange(10_000)
reveal("06.ceiling", fast_auc((positions < 200).float()[:, None], positions < 5_300).item())

# %% [markdown]
# The latent never errs, and its AUC is hardly above ½. It is on at a share $a$ of the positions, all among the
# share $s$ that is labelled. So a labelled position wins with probability $a/s$, and otherwise there is a tie:
#
# $$\text{AUC} \le \frac{a}{s} + \frac12\Big(1 - \frac{a}{s}\Big) = \frac12 + \frac{a}{2s} \qquad (a \le s)$$
#
# A sparse latent *cannot* have a large AUC for a common label, and that a dense number, such as an axis of the
# stream, does better is arithmetic. So do not compare sparse with dense by AUC. It is a fair measure of whether a
# latent knows *anything*. Compared with what? Not with ½: labels hold for stretches, and many depend on the place
# in the text (texts begin with "the first sentence"). Design the experiment that says how good a latent is by luck,
# when it has all that but does not know *this* text.

# %%
@exercise("06.luck")
def luck(
    latent: Float[Tensor, "n pos"], labels: Bool[Tensor, "n pos"], known: Bool[Tensor, "n pos"], draws: int,
    rng: torch.Generator,
) -> Float[Tensor, "draws"]:
    """AUCs that this latent gets by luck: the link between a text and its labels is broken, everything else is kept.

    `known` says at which positions the question has an answer; others must not count. `fast_auc` is there.
    Draw with `generator=rng`.
    """
    raise NotImplementedError


# %%
rng = torch.Generator().manual_seed(0)
by_luck = {name: luck(upright(*chosen.loc[name, ["latent", "AUC"]]), *judge[name], 40, rng) for name in asked}
key["luck, mean"] = {name: draws.mean().item() for name, draws in by_luck.items()}
key["luck, best of 40"] = {name: draws.max().item() for name, draws in by_luck.items()}
no_better = [name for name in asked if key.loc[name, "AUC"] <= key.loc[name, "luck, best of 40"]]
print(f"no better than luck: {len(no_better)} of {len(asked)}:", *no_better, sep="\n    ")
if len(asked) > 1:                                                  # one number for each question
    claim("latents chosen on one text know more about another than luck, over the questions",
          torch.tensor(key["AUC"].tolist()), ">", torch.tensor(key["luck, mean"].tolist()), unit="AUC")
key.round(3)

# %% [markdown]
# In `tiny` most of the chosen latents know something, if little. For two questions "knowing" was an illusion: a
# latent of AUC 0.65 does as well with *another* text's labels, because it reads the place in the text. Two more are
# above luck by a hair. Luck from shuffled *positions* would have been ½ for all, and fooled us. Where "chosen with
# AUC" is larger than "AUC", choosing flattered.
#
# One latent knows little, then. Is the fact missing from the dictionary, or spread over several entries? Let k
# latents answer together.

# %%
@exercise("06.sparse_probe")
def sparse_probe(latents: Float[Tensor, "m d_sae"], labels: Bool[Tensor, "m"], k: int) -> Float[Tensor, "d_sae"]:
    """A direction with at most k entries that are not 0, such that latents @ direction tells labelled positions from others.

    You choose the k latents, and their weights; it is judged by its AUC on other text. `linear_direction(x, labels)`
    gives the weights of a linear regression of the labels on the columns of x.
    """
    raise NotImplementedError


# %%
x_choose, x_judge = (each.unflatten(0, (-1, LENGTH - 1)).float() for each in (activations, test_activations))
knows = {"place in the text": {}, "the best latent": key["AUC"].to_dict(), "5 latents": {}, "20 latents": {},
         "20 axes of the stream": {}, "any direction of the stream": {}}
for name in asked:
    label, known = choose[name]
    share = (label & known).sum(dim=0) / known.sum(dim=0).clamp(min=1)              # by position: all that the place says
    knows["place in the text"][name] = judged(share.expand(len(test_tokens), -1), name)
    for k in (5, 20):
        probe = sparse_probe(choose_latents[known], label[known], k)
        knows[f"{k} latents"][name] = judged(judge_latents @ probe.to(judge_latents), name)
    axes = sparse_probe(x_choose[:ROWS][known], label[known], 20)
    knows["20 axes of the stream"][name] = judged(x_judge @ axes.to(x_judge), name)
    direction = linear_direction(x_choose[:ROWS][known], label[known])
    knows["any direction of the stream"][name] = judged(x_judge @ direction, name)
plot_bars(knows, "AUC on text that nothing was chosen on (0.5: knows nothing)", start=0.5,
          title=f"{MODEL}: who knows the fact?")

# %%
one, twenty, axes, whole = (torch.tensor([*knows[name].values()]) for name in (
    "the best latent", "20 latents", "20 axes of the stream", "any direction of the stream"))
if len(asked) > 1:
    claim("20 latents know more than the best one, over the questions", twenty, ">", one, unit="AUC")
    claim("20 latents of hundreds know nearly as much as a direction of the whole stream", twenty, "≈", whole,
          within=0.1, unit="AUC")
    claim("but 20 axes of the stream, too, know more than the best latent", axes, ">", one, unit="AUC")
pd.DataFrame(knows).round(2)

# %% [markdown]
# So in `tiny` the facts are *in* the dictionary, and few of them *are* entries of it: they are **distributed** over 5
# to 20 latents. "Inside a quotation" goes from about two thirds to 0.94. But the control, 20 axes of the stream, is
# hardly behind (by 0.03), and nobody trained an axis to mean anything. The stream holds these facts spread out; the
# dictionary keeps them, and makes them no easier to name. And for "the first sentence" and "we know where the actor is"
# the place alone has an AUC of 0.86, so there even a probe of 0.98 is less than it seems.
#
# One question does have a latent of its own. Look at its weak places, too, and silence it:

# %%
own_latent = int(key.loc[best, "latent"])
latent_dashboard(model, sae, latents, test_tokens, own_latent, note=f"best latent for: {best} (AUC {check:.2f})")

# %%
strong = silence(own_latent)
print(f"latent {own_latent} promotes {strong['token']!r}. KL where it is on: {strong['KL, own'].mean():.2g} nats; "
      f"for latent {some} it was {effect['KL, own'].mean():.1g}")
claim(f"silencing latent {own_latent} changes predictions more than random directions as long do", strong["KL, own"],
      ">", strong["KL, random"], unit="nats")

# %% [markdown]
# In `tiny` its strongest places are all "She", with an AUC of 1, but the middle and weaker ones are "He". It is a
# latent for a pronoun at the beginning of a sentence, only *stronger* for "She". AUC cannot see that, because every
# "She" lies above every "He": a perfect score and the wrong name. This one the model does use.
#
# ## 9 · Does it hold in a real language model?

# %%
real_model = load_real_model()

# %%
if real_model is not None:
    real_tokens = sample_text(real_model, n=16, length=96, seed=0)
    real_sae = topk_sae_for(real_model)
    real_latents = latent_activations(real_model, real_sae, real_tokens)
    real_share = (real_latents[:, 1:] != 0).float().mean(dim=(0, 1))
    real_labels = {name: answer[:, 1:].flatten().cpu()
                   for name, answer in token_labels(real_model, real_tokens).items()}
    real_found = best_latents(real_latents[:, 1:].flatten(0, 1), real_labels)
    display(real_found.round(3))
    measured("SmolLM2: best AUC of a latent for a label", real_found["AUC"].max(), at_least=0.5)

# %%
if real_model is not None:
    strong = real_latents[:, 2:].amax(dim=(0, 1)) * ((real_share > 0.002) & (real_share < 0.02))
    for latent in strong.topk(3).indices.tolist():
        display(latent_dashboard(real_model, real_sae, real_latents, real_tokens, latent, k=4))

# %% [markdown]
# In a real model we could ask only about the token at hand. Some latents tell a line break or a capital nearly
# perfectly; "human", "man" and "People" share one. Look at the weak places before you believe a name. (Here latents
# are chosen and judged on the same text, which flatters.)
#
# ## On your own
#
# Train TopK a second time from another start (`train_topk(..., seed=1)`). Does it find the *same* directions? Hand
# in one claim with its number and interval, the control (how good is the best match of a random mixture of
# activations?), what would have refuted the claim, and what it does not show.

# %% tags=["solution-only"]
def best_match(rows, others):
    """For each row the largest cosine with any of the others."""
    return (torch.nn.functional.normalize(rows, dim=1) @ torch.nn.functional.normalize(others, dim=1).T).amax(dim=1)


other = train_topk(k=my_topk.k, steps=STEPS, seed=1)
centred = activations.float() - activations.float().mean(dim=0)
noise = torch.randn(D_SAE, len(centred), generator=torch.Generator().manual_seed(2)) @ centred  # varies as activations do
used = latent_activations(model, my_topk, test_tokens).flatten(0, 1).any(dim=0)     # dead rows were never trained
match, control = best_match(my_topk.W_dec[used], other.W_dec), best_match(noise[used], other.W_dec)
claim("directions recur in a second dictionary more than random mixtures of activations", match, ">", control,
      unit="cosine")
single = best_match(centred[torch.randperm(len(centred), generator=torch.Generator().manual_seed(3))[:D_SAE]], other.W_dec)
print(f"with cosine above 0.7: {(match > 0.7).float().mean():.0%} of {int(used.sum())} latents that are ever active; mean "
      f"cosine of a single activation's best match: {single.mean():.2f}")

# %% [markdown] tags=["solution-only"]
# *A model answer.* The trained directions recur more than mixtures of activations that vary in the same way. But few
# have a close partner, so "the features" depend on the seed, and a single activation is matched better still: to
# recur is not yet to be a feature. A mean cosine like that of the mixtures would have refuted the claim. It does not
# show what longer training would do. The interval is too narrow, since latents of one dictionary are not independent.

# %% [markdown]
# ## What this does not show
#
# - That latents are *the* features. Another seed, another width or another kind gives another dictionary.
# - That what a latent means is what it *does*: of two latents that we silenced, one mattered.
# - That the error is harmless: 95 % of the variance may lack what a later layer needs (lesson 07).
# - That a high AUC means understanding: the label may go with something simpler, such as the word or the place.
#
# ## Summary
#
# - An autoencoder writes an activation as a sum of a few directions out of many. L0 and error belong together.
# - L1 shrinks. TopK, JumpReLU and Gated separate *whether* from *how much*, each in its way.
# - Rescaled inputs weigh all tokens alike. Measure errors in the scale of the activation.
# - Dead latents get no gradient, and an auxiliary loss wakes them. "Dead" depends on how much text you looked at.
# - Look at a latent's weak places, too, and silence it beside a random direction.
# - Choose on one text, judge on another, and measure luck with whole texts. A sparse latent has a low ceiling, and
#   a fact can be spread over twenty of them.
#
# Sources: Bricken et al., ["Towards Monosemanticity"](https://transformer-circuits.pub/2023/monosemantic-features)
# (2023); Cunningham et al., [arXiv 2309.08600](https://arxiv.org/abs/2309.08600); Gao et al., [arXiv
# 2406.04093](https://arxiv.org/abs/2406.04093) (TopK and the auxiliary loss); Rajamanoharan et al., [arXiv
# 2404.16014](https://arxiv.org/abs/2404.16014) (Gated) and [arXiv 2407.14435](https://arxiv.org/abs/2407.14435)
# (JumpReLU). The errors of measurement: SAELens, [issue 518](https://github.com/decoderesearch/SAELens/issues/518)
# (scaled against unscaled) and [pull request 711](https://github.com/decoderesearch/SAELens/pull/711) (divided by
# the batch size).
#
# Next: **07 · Is it faithful?**, where the model must continue from the reconstruction.

# %% tags=["exercise-only"]
progress("06")
