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
# **The question.** Lessons 02 to 05 took a model apart by its heads. But what is *in* the residual stream that
# the heads read? A vector of 256 numbers must carry the present word, who acts, whether a quotation is open,
# and much more: more facts, perhaps, than it has axes. If each fact has a direction of its own, and
# few facts hold at once, then a **sparse autoencoder** (SAE) can find the directions: it writes every
# activation as a sum of few entries of a large dictionary.
#
# You will build one, train it in front of your eyes, meet its four common kinds, and look at what it found. For
# once in interpretability there is an answer key: the stories that `tiny` reads come with labels.
#
# **You need:** lesson 00. Lessons 01 to 05 help, but nothing here depends on them.

# %%
import os

import pandas as pd
import torch
from IPython.display import display
from jaxtyping import Bool, Float, Int
from torch import Tensor

from course_utils.exercises import exercise, hint, predict, progress, reveal, solution
from course_utils.faithfulness import evaluate_sae
from course_utils.language import StoryLanguage
from course_utils.latents import (best_latents, latent_activations, linear_direction, story_labels,
                                  token_labels)
from course_utils.measured import measured
from course_utils.models import load_model, load_real_model
from course_utils.passes import collect_activations
from course_utils.sae import SparseAutoencoder
from course_utils.sae_files import load_shipped_sae, middle_layer, shipped_saes, topk_sae_for
from course_utils.sae_training import TrainingConfig, fit
from course_utils.text import reads_stories, sample_text
from course_utils.viz import latent_dashboard, plot_bars, plot_curves, plot_histogram, plot_points

MODEL = os.environ.get("COURSE_MODEL", "tiny")      # or write a name here, such as "smollm2-135m"
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
# `collect_activations` leaves out the first position. Let us see why.

# %%
_, cache = model.run_with_cache(test_tokens[:8], names_filter=[HOOK])
norms = cache[HOOK].norm(dim=-1).mean(dim=0)        # [pos]
print(f"mean norm at BOS {norms[0]:.1f}, at position 1 {norms[1]:.1f}, later {norms[2:].mean():.1f}")

# %% [markdown]
# In most models the activation at BOS is unlike all others, often larger by far: it is where heads park the
# attention they have no use for. One such vector in every sequence would take up latents and spoil every mean.
# So BOS is left out of training and measuring, in this course as in much of the field.
#
# ## 1 · The autoencoder
#
# An activation x becomes **latents** f, one for each of the dictionary's entries, and the latents become a
# **reconstruction**:
#
#     f = relu((x − b_dec) W_enc + b_enc)         [d_sae]: not negative, and most of them should be 0
#     x̂ = f W_dec + b_dec                         [d_in]
#
# Row i of `W_dec` is the direction that latent i stands for, and f_i says how much of it is in x. `b_dec` is
# where everything starts from: about the mean activation.

# %%
@exercise("06.encode")
def encode(
    x: Float[Tensor, "... d_in"], W_enc: Float[Tensor, "d_in d_sae"], b_enc: Float[Tensor, "d_sae"],
    b_dec: Float[Tensor, "d_in"],
) -> Float[Tensor, "... d_sae"]:
    """The latents of a ReLU autoencoder: relu((x − b_dec) W_enc + b_enc)."""
    raise NotImplementedError


# %% [markdown]
# What should training ask for? A small error, and few latents. "Few" cannot be differentiated, so the oldest
# recipe (Bricken et al., 2023) takes the next best thing and makes the *sum* of the latents costly, the **L1
# penalty**:
#
#     loss = mean over tokens of ( ‖x̂ − x‖² + sparsity · Σ_i |f_i| )
#
# Both terms are sums over components and means over tokens. Evaluators in wide use got just this wrong: two
# divided the squared error by the number of tokens a second time; in another, "l2_loss" is the norm and not its
# square. A number called "MSE" says little before you know what was divided by what.

# %%
@exercise("06.sae_loss")
def sae_loss(
    x: Float[Tensor, "tokens d_in"], x_hat: Float[Tensor, "tokens d_in"], latents: Float[Tensor, "tokens d_sae"],
    sparsity: float,
) -> Float[Tensor, ""]:
    """Mean over tokens of the squared error (summed over components) plus sparsity times Σ|f|."""
    raise NotImplementedError


# %% [markdown]
# There is a way to cheat: halve all latents, double all rows of `W_dec`, and the penalty is halved while nothing
# else changes. So after every step each row of `W_dec` is scaled back to norm 1.
#
# ## 2 · Train one
#
# Your two functions are all that a training loop needs. Here it is, whole, with nothing hidden. (It computes in
# float64, and so did `tiny` when it made the activations. Every processor rounds in its own way, and training makes
# a difference in the seventh digit one in the fourth. This way you see the numbers that we saw.)

# %%
def train(sparsity, steps, batch=512, lr=3e-3):
    """A ReLU autoencoder, and for each step the error as a share of ‖x‖² and the number of active latents."""
    sae = SparseAutoencoder(model.cfg.d_model, D_SAE, "relu", hook_name=HOOK).double()
    scale = activations.pow(2).mean().sqrt()                        # so that one learning rate fits every model
    with torch.no_grad():
        sae.b_dec.copy_(activations.mean(dim=0) / scale)
    optimizer = torch.optim.Adam(sae.parameters(), lr=lr)
    rng, seen = torch.Generator().manual_seed(0), []
    for step in range(steps):
        x = activations[torch.randint(0, len(activations), (batch,), generator=rng)].double() / scale
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
    with torch.no_grad():                                           # from here on for activations as they are
        sae.b_dec *= scale
        sae.b_enc *= scale
    return sae.float().requires_grad_(False), torch.tensor(seen)


my_sae, seen = train(sparsity=2.0, steps=STEPS)
plot_curves([("squared error / ‖x‖²", seen[:, 0]), ("active latents for each token (L0)", seen[:, 1])],
            xlabel="step", title=f"{MODEL}: an autoencoder learns")

# %%
mine = evaluate_sae(model, my_sae, test_tokens, everything=False, resamples=0)
print(f"on unseen text: {mine.l0:.2f} of {my_sae.d_sae} latents active, "
      f"{mine.explained_variance:.2%} of the variance explained")
measured("SAE trained live: explained variance", mine.explained_variance, unit="share")

# %% [markdown]
# The mean number of latents that are not 0 is called **L0**. Explained variance is 1 for a perfect
# reconstruction and 0 for one that always answers the mean; lesson 07 is about measuring it right, and about
# whether it is the right thing to measure.
#
# ## 3 · A dial, not a number
#
# Every autoencoder can have a smaller error with more latents. So neither of the two numbers means anything alone.
# Turn the dial, and compare autoencoders by the *curve*.
#
# **Predict before you look:** the penalty asks for small latents. Will the reconstructions come out too long,
# right, or too short: what is the mean of ‖x̂‖ / ‖x‖ for the autoencoder above?

# %%
predict("06.l2_ratio", None)

# %%
reveal("06.l2_ratio", mine.l2_ratio, unit="")
dial = []
for sparsity in (0.5, 1.0, 4.0):
    trained, _ = train(sparsity, STEPS // 2)
    report = evaluate_sae(model, trained, test_tokens, everything=False, resamples=0)
    dial.append((report.l0, report.explained_variance))
    print(f"sparsity {sparsity:3}: L0 {report.l0:6.2f}, explained variance {report.explained_variance:.4f}, "
          f"‖x̂‖/‖x‖ {report.l2_ratio:.4f}, bias {report.relative_reconstruction_bias:.4f}")

# %% [markdown]
# Too short: an L1 penalty pushes on every latent that is on, also on those that are right. This **shrinkage** is
# the price of L1, and the other kinds below exist to avoid it. (Any imperfect reconstruction is a little short. The
# last column, E‖x̂‖² / E[x·x̂], allows for that: it would be 1 for the best possible length.)
#
# ## 4 · Raw or normalised inputs?
#
# A squared error cares most about the longest vectors. If the norms of activations differ a lot from token to
# token, a few long ones run the training. Many autoencoders therefore see every activation *rescaled to the
# same norm*, √d_in, and multiply their answer by the number they divided by.
#
# Both directions count. A library once measured the error between the *scaled* reconstruction and the
# *unscaled* activation: a number that looks like an error and is none.

# %%
@exercise("06.reconstruct_rescaled")
def reconstruct_rescaled(x: Float[Tensor, "tokens d_in"], autoencoder) -> Float[Tensor, "tokens d_in"]:
    """The reconstruction of x by an autoencoder that was made for activations of norm √d_in.

    `autoencoder(y)` reconstructs activations y [tokens, d_in]. Divide each x by ‖x‖ / √d_in first, and multiply
    its reconstruction by the same number at the end.
    """
    raise NotImplementedError


# %%
norms = test_activations.norm(dim=1)
print(f"norms of the activations: from {norms.quantile(0.01):.1f} to {norms.quantile(0.99):.1f} "
      f"(the middle 98 %), median {norms.median():.1f}")
names = shipped_saes(MODEL)
saes = {name: load_shipped_sae(MODEL, name) for name in names if name.endswith(f"-{LAYER}")}
saes["yours"] = my_sae
reports = {name: evaluate_sae(model, sae, test_tokens, everything=False, resamples=0)
           for name, sae in saes.items()}


def table(columns):
    rows = {name: [getattr(report, column) for column in columns] for name, report in reports.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).round(3)


table(["l0", "l2_ratio", "mse", "explained_variance", "kl"])

# %% [markdown]
# For `tiny` the course ships two ReLU autoencoders that differ in nothing but this: `relu-2` saw raw
# activations and `relu-normalized-2` rescaled ones. The comparison of the forum thread that this lesson follows
# ("figure 7" and "figure 13": one by L0, one by L2) has the same form. What it teaches is to hold something
# fixed: the two differ in L0 *and* in error, so neither column alone can say which is better.
#
# (The column `kl` asks how much the model's *predictions* change with the reconstruction in the activation's
# place. That is lesson 07.)

# %%
def error_share(sae, x):
    """Squared error as a share of ‖x‖², over all of these activations."""
    return float((sae(x) - x).pow(2).sum() / x.pow(2).sum())


if "relu-normalized-2" in saes:
    fifths = norms.argsort().chunk(5)                               # of the test activations, short ones first
    by_norm = {name: {f"{norms[part].mean():.0f}": error_share(saes[name], test_activations[part])
                      for part in fifths} for name in ("relu-2", "relu-normalized-2")}
    display(plot_bars(by_norm, "squared error as a share of ‖x‖²", title="by the norm of the activation (fifths)"))

# %% [markdown]
# There is the difference. Trained on raw activations, an autoencoder spends its latents where errors are
# expensive: short activations come out worst (with both, but more so here). With rescaled inputs the error is
# shared out more evenly, at the cost of the long ones. Which of the two you want depends on what you want to
# know.
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
# **JumpReLU** (Rajamanoharan et al., 2024): each latent has a threshold θ of its own. At or below it the latent
# is 0; above it, it keeps its value, *all* of it. The number of active latents is penalised directly; its
# gradient is 0 almost everywhere, so training uses an estimate, which `course_utils.sae.JumpReLU` writes out.

# %%
@exercise("06.jump_relu")
def jump_relu(pre: Float[Tensor, "... d_sae"], threshold: Float[Tensor, "d_sae"]) -> Float[Tensor, "... d_sae"]:
    """pre where it exceeds the threshold of its latent, else 0. Thresholds are not negative."""
    raise NotImplementedError


# %% [markdown]
# **Gated** (Rajamanoharan et al., 2024): two questions, two answers. A gate decides *whether* a latent is on, and
# a magnitude says *how much*; the penalty rests on the gate alone, so that it cannot shrink the magnitude. Both
# read the same pre-activation, with an own bias each, and the magnitude with an own scale exp(r_mag):
#
#     gate = 1 where pre + b_gate > 0, else 0           magnitude = relu(pre · exp(r_mag) + b_mag)
#     f = gate · magnitude

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
shapes = {"ReLU": pre.relu(), "JumpReLU, θ = 0.5": jump_relu(pre, half),
          "gated, b_gate = −0.5": gated(pre, -half, 0 * one, 0 * one)}
plot_curves([("latent", {name: shape[:, 0] for name, shape in shapes.items()})], x=pre[:, 0],
            xlabel="pre-activation", title="what becomes of a pre-activation")

# %% [markdown]
# With r_mag = 0 and b_mag = 0 a gated latent *is* a JumpReLU latent: the two kinds differ in how they are
# trained. Now the autoencoders of the middle layer side by side:

# %%
table(["l0", "explained_variance", "relative_reconstruction_bias", "kl"])

# %%
plot_points({name: (each.l0, each.explained_variance) for name, each in reports.items()},
            "active latents for each token (L0)", "explained variance",
            line=dial, line_label="yours, other sparsities, half the steps",
            title=f"{MODEL}: what lies above and to the left is better")

# %% [markdown]
# Now the picture can be read, because it has both numbers. In `tiny`: the two ReLU kinds shrink, the three others
# do not (third column of the table). JumpReLU explains as much as ReLU with a third fewer latents, and Gated
# explains more than ReLU with fewer. TopK explains most, with most latents: whether it lies above
# the others' curves, too, one point of each cannot say. Yours saw less than a twentieth of the examples that they had.
#
# ## 6 · Dead latents
#
# A latent that is active nowhere is **dead**: it gets no gradient, so nothing wakes it. Large dictionaries can
# lose most of their latents that way. Which ones are dead can only be said for some text: on more of it, a rare
# latent may turn out to be alive.

# %%
@exercise("06.dead_latents")
def dead_latents(latents: Float[Tensor, "n pos d_sae"], mask: Bool[Tensor, "n pos"]) -> Bool[Tensor, "d_sae"]:
    """True for each latent that is 0 wherever the mask is True. (One that is below 0 is not 0: it is active.)"""
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
# Two medicines. *Resampling* gives dead latents new directions, taken from activations that are badly
# reconstructed. The *auxiliary loss* (Gao et al.) lets the dead ones practise: together they must explain what
# the living ones leave over. `course_utils.sae_training` does the second. Here it is at work on a dictionary of
# which half was made to die: encoder columns so small that they are never among the k largest.

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
# A latent is a hypothesis: "this direction means something". The first thing to do is to look where it is
# active most.

# %%
@exercise("06.top_activations")
def top_activations(latent: Float[Tensor, "n pos"], k: int) -> Int[Tensor, "k 2"]:
    """The (sequence, position) of the k largest values, largest first, at most one in each sequence.

    Only places where the latent is active (above 0) count, so there may be fewer than k.
    """
    raise NotImplementedError


# %%
some = int((active_share - 0.02).abs().argmin())                    # active about twice in a hundred tokens
for row, position in top_activations(latents[..., some], k=5).tolist():
    before = model.tokenizer.decode(test_tokens[row, max(0, position - 8):position].tolist())
    print(f"{latents[row, position, some]:6.2f}  {before!r}  ->  "
          f"{model.tokenizer.decode([int(test_tokens[row, position])])!r}")

# %% [markdown]
# The strongest places are where a latent looks best. A **dashboard** shows more: weaker places too, how often it
# is active at all, and which next tokens its direction makes likelier. Hover over a token for its value.

# %%
latent_dashboard(model, sae, latents, test_tokens, some)

# %% [markdown]
# ## 8 · The answer key
#
# Looking at examples, people see patterns also where there are none. The stories of `tiny` come with labels:
# who acts, whether a quotation is open, whether the subject is plural. So we can ask of *every* latent how well
# it tells labelled positions from the others.
#
# The **AUC** does that without choosing a threshold: the probability that the latent is larger at a random
# labelled position than at a random other one, a tie counting half. 1 is perfect, ½ knows nothing, and 0 is
# perfect upside down. Since a sparse latent is 0 nearly everywhere, ties are most of the work.

# %%
@exercise("06.auc")
def auc(latents: Float[Tensor, "m d_sae"], labels: Bool[Tensor, "m"]) -> Float[Tensor, "d_sae"]:
    """For each latent: P(f₊ > f₋) + ½ P(f₊ = f₋) for a random labelled and a random other position.

    Below, m is about 8,000: compare all pairs at once, or sort.
    """
    raise NotImplementedError


# %%
def questions(tokens, seed):
    """{question: answer at every position but the first}, and where it has an answer."""
    if reads_stories(model):
        labels, known = story_labels(StoryLanguage(seed).sample(*tokens.shape, truth=False))
    else:
        labels, known = token_labels(model, tokens), {}
    return tuple({name: answer[:, 1:].flatten().cpu() for name, answer in each.items()}
                 for each in (labels, known))


labels, known = questions(test_tokens, seed=TEST)
flat_latents = latents[:, 1:].flatten(0, 1)                         # [positions, d_sae]
found = best_latents(flat_latents, labels, known=known)
found.round(3)

# %%
best = found["AUC"].sub(0.5).abs().idxmax()
asked = known.get(best, torch.ones_like(labels[best]))              # where the question has an answer
check = float(auc(flat_latents[asked][:, [found.loc[best, "latent"]]], labels[best][asked]))
print(f"the best of all: {best!r}, by latent {found.loc[best, 'latent']}, AUC {check:.3f}")
measured("best AUC of a latent for a label", max(check, 1 - check), at_least=0.5)

# %% [markdown]
# Is that good? Three comparisons tell.
#
# - **Luck.** We took the best of hundreds of latents. How good is the best for labels that were shuffled?
# - **Axes.** The residual stream has axes of its own. How good is the best of them, with no dictionary at all?
# - **Any direction.** How much does the stream know? A direction found by linear regression on *other* text,
#   with the answers in hand, says what a single number could know at best.

# %%
rng = torch.Generator().manual_seed(0)
shuffled = {name: label[torch.randperm(len(label), generator=rng)] for name, label in labels.items()}
train_labels, train_known = questions(train_tokens, seed=TRAIN)
by_direction = {}
for name, label in labels.items():
    asked, train_asked = (known.get(name, slice(None)), train_known.get(name, slice(None)))
    if name in train_labels:
        direction = linear_direction(activations[train_asked].float(), train_labels[name][train_asked])
        by_direction[name] = float(auc((test_activations[asked] @ direction)[:, None], label[asked]))


def strength(table):
    return (table["AUC"].sub(0.5).abs() + 0.5)[list(by_direction)].to_dict()


plot_bars({"a direction, by regression": by_direction, "the best latent": strength(found),
           "the best axis of the stream": strength(best_latents(test_activations, labels, known=known)),
           "the best latent, labels shuffled": strength(best_latents(flat_latents, shuffled))},
          "AUC, or 1 − AUC if that is larger (0.5: knows nothing)",
          title=f"{MODEL}: does one number know the fact?")

# %% [markdown]
# For `tiny` this is sobering, and worth more than a nice picture. For about half of the questions one direction
# of the stream reads the answer off nearly perfectly, for the others clearly better than luck. The dictionary has
# a latent that is strongest at "She". But for most questions, "inside a quotation" among them, the best of its
# latents is worse than the best *axis*. Our guess: such facts hold with many words, and are spread over many
# latents. A perfect reconstruction from latents that each look sensible is not proof that the facts one cares
# about have latents.
#
# The latent with the best score, on its dashboard:

# %%
latent_dashboard(model, sae, latents, test_tokens, int(found.loc[best, "latent"]),
                 note=f"best latent for: {best} (AUC {found.loc[best, 'AUC']:.2f})")

# %% [markdown]
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
# In a real model we could ask only about the token at hand: some latents tell a line break or a capital nearly
# perfectly; "human", "man" and "People" share one. Look at the weak places before you believe a name.
#
# ## What this does not show
#
# - That latents are *the* features. Another seed, another width or another kind gives another dictionary.
# - That the model *uses* them. A direction can tell plural from singular and be read by nothing.
# - That the error is harmless. A reconstruction may keep 95 % of the variance and lose what a later layer needs.
#   That is lesson 07.
# - That an AUC near 1 means understanding: the label may go with something simpler, such as the present word.
#
# ## Summary
#
# - An autoencoder writes an activation as a sum of few directions out of many. L0 and error belong together.
# - L1 shrinks. TopK, JumpReLU and Gated separate *whether* from *how much*, each in its way.
# - Rescaled inputs weigh all tokens alike; measure errors in the scale of the activation.
# - Dead latents get no gradient; an auxiliary loss wakes them. "Dead" depends on how much text you looked at.
# - Look at a latent's weak places as well as its strong ones. Compare what it knows with luck, with plain axes,
#   and with the best direction there is.
#
# Sources: Bricken et al., "Towards Monosemanticity" (2023); Cunningham et al., "Sparse Autoencoders Find Highly
# Interpretable Features in Language Models" (2023); Gao et al., "Scaling and evaluating sparse autoencoders"
# (2024); Rajamanoharan et al., "Improving Dictionary Learning with Gated Sparse Autoencoders" (2024) and "Jumping
# Ahead" (2024); the errors of measurement: SAELens pull requests 518 (scaled against unscaled) and 711 (divided
# by the batch size).
#
# Next: **07 · Is it faithful?**, where the reconstruction takes the activation's place and the model must go on
# with it.

# %% tags=["exercise-only"]
progress("06")
