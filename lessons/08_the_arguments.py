# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 08 · The arguments
#
# **The question.** *Which* number says that an autoencoder is faithful? Practitioners have argued about this in
# public, and left it open. Is ΔCE simply the KL? Does the reconstruction score hide what matters, and is its
# landmark too noisy? Which differences are interesting? And how much harm would *any* error of this size do?
#
# Most sections are one such argument: two positions, your prediction, something to derive or find, the measurement.
# We have what those discussions lacked, text whose true next-word distribution is known.
#
# **You need:** lesson 07.

# %% tags=["parameters"]
import os
from contextlib import nullcontext

import torch
from IPython.display import display
from jaxtyping import Float, Int
from torch import Tensor

from course_utils.baselines import noise_floor, true_noise_floor
from course_utils.claims import claim, difference, estimate
from course_utils.exercises import exercise, hint, predict, progress, reveal, solution
from course_utils.faithfulness import evaluate_sae, patched_logits
from course_utils.language import StoryLanguage
from course_utils.measured import measured
from course_utils.metrics import (confidently_wrong, delta_cross_entropy, interval, kl_divergence, kl_terms,
                                  log_softmax, mean_and_error, reconstruction_score)
from course_utils.models import load_model, load_real_model
from course_utils.passes import collect_activations, in_float64
from course_utils.sae_files import load_shipped_sae, middle_layer, shipped_saes, topk_sae_for
from course_utils.text import own_text, reads_stories, sample_text, stories_in_english
from course_utils.viz import plot_bars, plot_by_position, plot_histogram

MODEL = os.environ.get("COURSE_MODEL", "tiny")      # or write a name here, such as "smollm2-135m"

# %%
model = load_model(MODEL)
LAYER = middle_layer(model)
HOOK = f"blocks.{LAYER}.hook_resid_pre"
sae = topk_sae_for(model)
N, LENGTH = (96, 128) if MODEL == "tiny" else (6, min(64, model.cfg.n_ctx))
print(f"{MODEL}: {sae}")

# %% [markdown]
# (The course's `patched_logits(model, sae, tokens)` gives the logits of both passes, clean and patched.)
#
# ## 1 · "ΔCE is the KL"
#
# An author who had reported ΔCE wished that it had been the KL divergence. *They are the same*, a commenter
# answered: the target of a cross-entropy is 1 for the actual next token and 0 for all others, so the KL's factor p
# would just be 1. The author agreed, and there the thread ends.
#
# **Predict before you derive:** by how many nats do mean ΔCE and mean KL differ on text that the model itself
# wrote?

# %%
predict("08.own_text", None)

# %% [markdown]
# Now derive it. Let the next token $t$ really come from $P$, with $p$ the clean model and $q$ the patched one. In
# the expected ΔCE, what weights each token?
#
# $$E[\Delta CE] = \sum_t \;\ldots\; \big(\ln p(t) - \ln q(t)\big)$$

# %%
@exercise("08.expected_delta_ce")
def expected_delta_ce(
    true_log_probs: Float[Tensor, "*position vocab"], p_logits: Float[Tensor, "*position vocab"],
    q_logits: Float[Tensor, "*position vocab"],
) -> Float[Tensor, "*position"]:
    """ΔCE at each position, in nats, averaged over the tokens that could have come.

    Each counts as often as it comes. `true_log_probs` is ln P; −inf where a token is impossible.
    """
    raise NotImplementedError


# %% [markdown]
# The weight is $P$, the *data's* probability: the factor which is 1 for the actual next token. The KL's factor is
# $p$, the *model's* opinion. So
#
# $$E[\Delta CE] = KL(P\|q) - KL(P\|p)$$
#
# (the difference of two distances from the data)
#
# $$E[\Delta CE] = KL(p\|q) + \sum_t (P - p)\,\ln\frac pq$$
#
# (the KL, and a rest that is 0 if $P = p$, as on text that the model wrote)

# %%
def compare(tokens, truth=None, batch=16):
    """KL, ΔCE and, where the truth is known, E[ΔCE] at every counted position, [n, LENGTH - 2]."""
    found = {"KL": [], "ΔCE": []} | ({"E[ΔCE]": []} if truth is not None else {})
    for i in range(0, len(tokens), batch):
        p_logits, q_logits = patched_logits(model, sae, tokens[i : i + batch])
        found["KL"].append(kl_divergence(p_logits, q_logits)[:, 1:-1].cpu())
        found["ΔCE"].append(delta_cross_entropy(p_logits, q_logits, tokens[i : i + batch])[:, 1:].cpu())
        if truth is not None:
            true = truth[i : i + batch].to(p_logits.device)
            found["E[ΔCE]"].append(expected_delta_ce(true, p_logits, q_logits)[:, 1:-1].cpu())
    return {name: torch.cat(values) for name, values in found.items()}


with in_float64(model) if MODEL == "tiny" else nullcontext():       # so that every machine draws the same tokens
    written = own_text(model, N, LENGTH, seed=0)
own = compare(written)
own["ΔCE − KL"] = own["ΔCE"] - own["KL"]
reveal("08.own_text", mean_and_error(own["ΔCE"] - own["KL"])[0])
claim("on the model's own text mean ΔCE is the KL", own["ΔCE"].mean(1), "≈", own["KL"].mean(1), within=0.005, unit="nats")
print(f"{own['KL'].numel():,} tokens written by {MODEL}; mean ± standard error over sequences, nats")
for name, values in own.items():
    mean, error = mean_and_error(values)
    print(f"{name:10}{mean:9.4f} ± {error:.4f}" + f", {error / mean:.0%} of the mean" * ("−" not in name))

# %% [markdown]
# If you predicted a difference: on its own text the model's opinion *is* the truth, so the weights $P$ and $p$ are
# the same, whatever the autoencoder does.
#
# But why is this KL ten times lesson 07's, and known only to a third on so large a sample? Look text by text.

# %%
by_text = own["KL"].mean(dim=1)
order = by_text.argsort(descending=True)
worst_tenth = by_text[order[: max(1, N // 10)]].sum() / by_text.sum()
print(f"own text: the worst tenth of the sequences makes {worst_tenth:.0%} of the KL; "
      f"median {by_text.median():.4f} nats, mean {by_text.mean():.4f}")
for i in (*order[:2].tolist(), int(order[N // 2])):
    print(f"  KL {by_text[i]:.4f}: {model.tokenizer.decode(written[i, 1:14])!r}")

# %% [markdown]
# In `tiny` the worst texts are not stories. Its training included random words that repeat (lesson 01), so now and
# then it writes such a text, and the autoencoder, which saw only stories, fails (lesson 09). A few sequences made
# the mean, as the ± above said.
#
# Now the stories, which the model did not write. Here $P$ is known, so $E[\Delta CE]$ is free of the luck of which
# token came next. (Which texts we drew is still luck.)

# %%
if reads_stories(model):
    stories = StoryLanguage(77).sample(N, LENGTH)
    told = compare(stories.tokens.to(model.cfg.device), stories.true_log_probs)
    told["ΔCE − KL"] = told["ΔCE"] - told["KL"]
    told["E[ΔCE] − KL"] = told["E[ΔCE]"] - told["KL"]
    print("stories, nats")
    for name, values in told.items():
        mean, error = mean_and_error(values)
        print(f"{name:12}{mean:9.5f} ± {error:.5f}" + f", {error / mean:.0%} of the mean" * ("−" not in name))

# %% [markdown]
# Close again, but by no theorem: `tiny` was trained on this language until its p was nearly P, so the rest term is
# small. Further from the data the two come apart, and ΔCE, unlike any KL, can be **negative**.
#
# **Find a counter-example.** Three distributions on the same two or three tokens, such that the patch changes the
# model (KL above 0) yet improves the loss on the data (E[ΔCE] below 0). What must q be, compared with p?

# %%
@exercise("08.counter_example")
def counter_example() -> tuple[list[float], list[float], list[float]]:
    """(P, p, q): the data, the model and the patched model, with E[ΔCE] below −0.01 nats.

    Each a list of probabilities, all above 0, with sum 1, over the same tokens.
    """
    raise NotImplementedError


# %%
P, p, q = (torch.tensor(each).double().log() for each in counter_example())
print(f"E[ΔCE] {expected_delta_ce(P, p, q):.4f} nats, KL(p‖q) {kl_divergence(p, q):.4f} nats")

# %% [markdown]
# Now for real, and large: let the "patch" be an education. p is an early checkpoint of `tiny`, and q is the same
# model grown up.

# %%
if MODEL == "tiny":
    young = load_model("tiny", step=400)
    tokens, true = (each.to(model.cfg.device) for each in (stories.tokens, stories.true_log_probs))
    p_logits, q_logits = young(tokens), model(tokens)
    kl = kl_divergence(p_logits, q_logits)[:, 1:-1]
    delta = delta_cross_entropy(p_logits, q_logits, tokens)[:, 1:]
    r = log_softmax(p_logits) - log_softmax(q_logits)
    rest = ((true.exp() - p_logits.softmax(-1)) * r).sum(-1)[:, 1:-1]
    for name, values in {"KL(p‖q)": kl, "ΔCE": delta, "measured ΔCE − KL": delta - kl,
                         "predicted Σ (P − p) ln(p/q)": rest}.items():
        print(f"{name:30}{mean_and_error(values)[0]:9.4f} ± {mean_and_error(values)[1]:.4f}")
    better = (expected_delta_ce(true, p_logits, q_logits)[:, 1:-1] < 0).float().mean()
    print(f"the patch brings {better:.1%} of the predictions nearer to the truth")
    claim("what ΔCE is above or below the KL, measured from labels, is what the truth predicts", (delta - kl).mean(1), "≈",
          rest.mean(1), within=0.05, unit="nats")

# %% [markdown]
# The KL counts the training as damage, three times as large as the gain in ΔCE. That is no fault: the KL asks *how
# much the model was changed*, ΔCE *what it cost on this text*. The commenter's "the same" is right where the
# model's own distribution makes the text, and elsewhere only by accident.
#
# ## 2 · Which one needs fewer tokens, and how many texts?
#
# ΔCE looks at one token per position, the KL at every token. So ΔCE is noisier even where the means are the same.
#
# **Predict:** on stories the KL is about 0.006 nats. How many tokens until mean ΔCE is known to a tenth of that
# (one standard error)?

# %%
predict("08.tokens_needed", None, unit="tokens")

# %% [markdown]
# At a position, with $t$ drawn from $p$, ΔCE has the mean $KL(p\|q)$ and the variance
# $\sum_t p\,(\ln\frac pq - KL)^2$. The mean of $n$ tokens has the variance divided by $n$.

# %%
@exercise("08.tokens_needed")
def tokens_needed(
    p_logits: Float[Tensor, "position vocab"], q_logits: Float[Tensor, "position vocab"],
    precision: float = 0.1,
) -> float:
    """How many tokens, drawn from p, until mean ΔCE has a standard error of `precision` times the KL.

    Take the mean KL and the mean variance over the positions. Not rounded.
    """
    raise NotImplementedError


# %%
text = sample_text(model, n=min(N, 32), length=LENGTH, seed=3)
every = 1 if MODEL == "tiny" else 7
p_logits, q_logits = (logits[:, 1:-1].flatten(0, 1)[::every] for logits in patched_logits(model, sae, text))
needed, kl = tokens_needed(p_logits, q_logits, 0.1), kl_divergence(p_logits, q_logits).mean().item()
rule = 2 / (kl * 0.1**2)
reveal("08.tokens_needed", float(f"{needed:.2g}"))                  # two digits
print(f"KL {kl:.4f} nats; the variance is {needed * kl * 0.1**2:.2f} times the KL; "
      f"2 / (KL · 0.1²), as if it were 2, would be {float(f'{rule:.2g}'):.0f} tokens")

# %% [markdown]
# Check it: draw a token at every position, take the mean ΔCE, and repeat.

# %%
r, p = log_softmax(p_logits) - log_softmax(q_logits), p_logits.softmax(-1)
drawn = torch.multinomial(p.cpu(), 2000, replacement=True, generator=torch.Generator().manual_seed(0))
means = r.cpu().gather(1, drawn).mean(dim=0)        # 2,000 times the mean over all positions
predicted_spread = 0.1 * kl * (needed / len(p)) ** 0.5
print(f"{len(p):,} tokens, 2,000 times: mean {means.mean():.4f} (KL {kl:.4f}), "
      f"spread {means.std():.4f}, predicted {predicted_spread:.4f} nats")
low, high = interval(means)
print(f"95 % of the 2,000 means lie between {low:.4f} and {high:.4f}; the spread is {means.std() / kl:.0%} of the KL")
plot_histogram(means, "mean ΔCE of one draw (nats)", "draws", title="the same patch and positions, other luck")

# %% [markdown]
# For a small KL the variance is about twice the KL, so the tokens needed, about 2 / (KL · precision²), grow as the
# autoencoder gets *better*. Even on these four thousand tokens one ΔCE has a standard error of nearly a third.
#
# But that is only the luck of which token came, at fixed positions. **Texts differ, too**, for the KL as for ΔCE.
# In the first table both are known to a third on 12,096 tokens, four times what the rule asks for at a KL of 0.06.
# In the second $E[\Delta CE]$, which has no luck of tokens, is known to a quarter. So the rule gives the *least*
# number of tokens. Plan texts, with a standard error over texts.
#
# ### Comparing two autoencoders
#
# Compare two autoencoders **paired**, on *the same texts*: what makes a text hard is hard for both and cancels in
# the difference. A small pilot tells beforehand how many texts that needs.

# %%
@exercise("08.texts_needed")
def texts_needed(a: Float[Tensor, "n"], b: Float[Tensor, "n"], smallest: float) -> float:
    """How many texts a comparison of two autoencoders needs, planned from a pilot of n texts.

    `a` and `b` hold the mean harm of each on each text; entry i of both is about the same text. Enough
    are so many that two standard errors of the mean difference are `smallest`. Not rounded.
    """
    raise NotImplementedError


# %%
def harm(sae, texts):
    """Mean ΔCE and mean KL of each text, [n] each."""
    found = []
    for rows in texts.split(16):
        p_logits, q_logits = patched_logits(model, sae, rows)
        found.append(torch.stack([delta_cross_entropy(p_logits, q_logits, rows)[:, 1:].mean(1),
                                  kl_divergence(p_logits, q_logits)[:, 1:-1].mean(1)]).cpu())
    return torch.cat(found, dim=1)


if MODEL == "tiny":
    two, smallest = [load_shipped_sae(MODEL, name) for name in ("gated-2", "jumprelu-2")], 0.005
    pilot = [harm(each, sample_text(model, n=16, length=LENGTH, seed=40)) for each in two]
    plan = [texts_needed(a, b, smallest) for a, b in zip(*pilot)]
    print(f"to see a difference of {smallest} nats: {plan[0]:.0f} texts for ΔCE, {plan[1]:.0f} for the KL")
    x = collect_activations(model, HOOK, text).to(two[0].W_dec)
    L0 = [(each.encode(x) > 0).sum(-1).float().mean() for each in two]
    print(f"active latents for each token: gated-2 {L0[0]:.1f}, jumprelu-2 {L0[1]:.1f}")
    fresh = sample_text(model, n=min(96, int(max(plan)) + 1), length=LENGTH, seed=41)
    for name, a, b in zip(("ΔCE", "KL"), *(harm(each, fresh) for each in two)):
        claim(f"gated-2 does less harm than jumprelu-2 ({name}, {len(fresh)} texts)", a, "<", b, unit="nats")
        print(f"    the same, as if the texts were not the same: difference {difference(estimate(a), estimate(b))}")

# %% [markdown]
# Only the paired comparison can tell the two apart. (Two dictionaries, not two *kinds*: gated-2 also has more
# active latents. See lesson 06.) The pilot is not used again: it decided how long you look, and must not decide
# what you see.
#
# ## 3 · In another thread
#
# > A sceptic wrote that "the difference of losses is the KL" would need, with A the patched model, C the clean one and B
# > the data, $D(A\|B) - D(C\|B) = D(A\|C)$ or $D(A\|B)\,/\,D(C\|B) = D(A\|C)$, and doubted both. Rightly: for a
# > perfect patch, A = C, the ratio reads 1 = 0. But both have their arguments reversed, since a loss on data B is
# > $D(B\|\cdot)$. Corrected, the difference $D(B\|A) - D(B\|C)$ is $E[\Delta CE]$. It equals $D(C\|A)$ if the text is the
# > model's own (section 1), and otherwise only by chance. Your counter-example, in all three:

# %%
P, p, q = (torch.tensor(each).double().log() for each in counter_example())
print(f"as written {kl_divergence(q, P) - kl_divergence(p, P):.4f}, corrected "
      f"{kl_divergence(P, q) - kl_divergence(P, p):.4f}, the KL {kl_divergence(p, q):.4f} nats")

# %% [markdown]
# ## 4 · Is the score too noisy?
#
# About the reconstruction score, $(L_{zero} - L_{sae}) / (L_{zero} - L_{clean})$, the same thread disagreed twice.
# *It is not clear that dividing by zero-ablation makes sense; nats lost would be better.* And: *just show L_sae,
# since L_zero is very noisy*, against: *L_sae is not informative, it depends on the batch; the score is good as it
# is.*
#
# **Predict:** which is known least precisely on one batch, relative to its size: L_clean, L_sae, L_zero, ΔCE, or
# 1 − score?

# %%
predict("08.noisiest", None, unit="")

# %% [markdown]
# The first argument is algebra. With $D = L_{zero} - L_{clean}$ the score is $1 - \Delta CE / D$: ΔCE on another
# scale, as long as $D$ is the same. But $D$ belongs to the layer and to the text:

# %%
text = sample_text(model, n=min(N, 48), length=LENGTH, seed=5)
for name in [name for name in shipped_saes(MODEL) if name.startswith("topk")]:
    each = evaluate_sae(model, load_shipped_sae(MODEL, name), text, everything=False, resamples=0)
    D = each.ce_zero - each.ce_clean
    print(f"{name}: ΔCE {each.delta_ce:.4f} nats, D {D:.2f}, score {each.reconstruction_score:.4f}; "
          f"one point of the score is {D / 100:.3f} nats, {D / 100 / each.kl:.0f} times this one's KL")

# %% [markdown]
# The second needs a measurement: how wide are the intervals on the same batches? A hard text raises L_clean and
# L_sae together, so one draw of sequences must serve all three losses. With a draw for each, the difference of two
# texts would pass for uncertainty of the score.

# %%
@exercise("08.score_interval")
def score_interval(
    ce_clean: Float[Tensor, "n"], ce_sae: Float[Tensor, "n"], ce_zero: Float[Tensor, "n"],
    draws: Int[Tensor, "resample n"],
) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of (L_zero − L_sae) / (L_zero − L_clean) over resampled sequences.

    `ce_…` hold the mean cross-entropy of each sequence; row r of `draws` names the sequences of
    resample r. Each L is the mean over the sequences of a resample: one score for each resample.
    """
    raise NotImplementedError


# %%
class Zero:
    """Answers every activation with zeros."""

    hook_name = HOOK
    encode = decode = staticmethod(lambda x: 0 * x)


targets = text[:, 2:, None]                                         # BOS is not counted
ce = {}
for name, each in {"clean": None, "sae": sae, "zero": Zero()}.items():
    logits = model(text) if each is None else patched_logits(model, each, text)[1]
    ce[name] = -log_softmax(logits[:, 1:-1]).gather(2, targets)[..., 0].mean(dim=1).cpu()
draws = torch.randint(0, len(text), (500, len(text)), generator=torch.Generator().manual_seed(0))
intervals = {f"L_{name}": (values.mean(), *interval(values[draws].mean(1)))
             for name, values in ce.items()}
loss = ce["sae"] - ce["clean"]
intervals["ΔCE"] = (loss.mean(), *interval(loss[draws].mean(1)))
score = reconstruction_score(*(values.mean() for values in ce.values())).item()
low, high = score_interval(ce["clean"], ce["sae"], ce["zero"], draws)
intervals["1 − score"] = (1 - score, 1 - high, 1 - low)
widths = {name: float((high - low) / abs(value)) for name, (value, low, high) in intervals.items()}
reveal("08.noisiest", ", ".join(name for name in widths if widths[name] > 0.99 * max(widths.values())))
for name, (value, low, high) in intervals.items():
    print(f"{name:10}{value:9.5f}   95 % from {low:8.5f} to {high:8.5f}   "
          f"width / value {widths[name]:.3f}")
apart = [values[draws[torch.randperm(500, generator=torch.Generator().manual_seed(i))]].mean(1)
         for i, values in enumerate(ce.values())]
low, high = interval(reconstruction_score(*apart))
print(f"score {score:.5f}; with a draw for each loss its interval would be {low:.4f} to {high:.4f}")

# %% [markdown]
# - **L_zero is the *least* noisy of all.** Without the stream the model says nearly the same at every position,
#   whatever the text. (Its fault is its distance: see lesson 07.)
# - **L_sae depends on the batch**, and says little: nearly all of its width is the text's, shared with L_clean.
# - **ΔCE and 1 − score have the same relative width**, because one is the other divided by a constant. The score
#   *looks* more precise because it is printed as 0.999.
#
# ## 5 · "Only some differences are interesting"
#
# Below a post on reconstruction errors: *Faithful reconstructions should keep all probabilities, but loss compares
# only that of the true next token.* Against: *if the model gave the right token more than the reconstruction does,
# that is interesting; differences on other random tokens may be noise. But where the model is confidently wrong and
# the reconstruction changes how, we might want to explain it.* And: *KL is a good compromise, it ignores what the
# model thinks unlikely, unlike something cursed such as a distance of log-probabilities.*
#
# ### Which tokens carry it?
#
# First the confidently wrong, where the favourite had more than one half and another token came.

# %%
p_logits, q_logits = patched_logits(model, sae, text)
wrong = confidently_wrong(p_logits, text, confidence=0.5)[:, 1:]
sure = (p_logits.softmax(-1).amax(-1) > 0.5)[:, 1:-1]
kl = kl_divergence(p_logits, q_logits)[:, 1:-1]
delta = delta_cross_entropy(p_logits, q_logits, text)[:, 1:]
groups = {"confident and right": sure & ~wrong, "confident and wrong": wrong, "not confident": ~sure}
print(f"{'':22}{'share of tokens':>16}{'of all KL':>12}{'mean KL':>10}{'mean ΔCE':>10}{'ΔCE < −0.001':>14}")
for name, where in groups.items():
    print(f"{name:22}{where.float().mean():16.1%}{kl[where].sum() / kl.sum():12.1%}"
          f"{kl[where].mean():10.4f}{delta[where].mean():10.4f}{(delta[where] < -1e-3).float().mean():14.0%}")
favourite = p_logits[:, 1:-1].argmax(-1, keepdim=True)
taken = (p_logits.softmax(-1) - q_logits.softmax(-1))[:, 1:-1].gather(2, favourite)[..., 0]
for least in (0, 0.1):
    these = wrong & (taken > least)
    print(f"confident and wrong, and the patch takes more than {least} from the favourite: "
          f"ΔCE below 0 in {int((delta[these] < 0).sum())} of {int(these.sum())}")

# %% [markdown]
# A few tokens carry a good part of the KL. It counts any change as damage, ΔCE perhaps as a gain. But a patch that
# takes belief from a wrong favourite need not help: it may move to a third word. Over all such tokens it mostly
# does help (next to a tautology); where it takes much, there are too few of them for a rule.
#
# ### Was the model wrong?
#
# In the stories we can ask the truth. But positions where the favourite did *not* come are a selection: of a model
# that errs both ways and is right on average, the overestimates. So ask at all confident positions, too.

# %%
if reads_stories(model):
    sample = StoryLanguage(5).sample(len(text), LENGTH)             # the same text, now with its truth
    came = text[:, 2:, None]
    says = {name: log_probs[:, 1:-1].exp() for name, log_probs in {
        "truth": sample.true_log_probs.to(p_logits), "model": log_softmax(p_logits),
        "patched": log_softmax(q_logits)}.items()}
    of_favourite = {name: probs.gather(2, favourite)[..., 0] for name, probs in says.items()}
    print("mean probability of the model's favourite at all confident positions, and where it did not come; "
          "of the token that came there")
    for name, probs in says.items():
        print(f"{name:8}{of_favourite[name][sure].mean():8.3f}{of_favourite[name][wrong].mean():8.2f}"
              f"{probs.gather(2, came)[..., 0][wrong].mean():8.2f}")
    doubt = {name: ((1 - of) * sure).sum(1) / sure.sum(1) for name, of in of_favourite.items()}
    claim("over all confident positions the model doubts its favourite less than it should", doubt["model"], "<",
          doubt["truth"], unit="probability")

# %%
worst = torch.where(wrong, kl, -1.0).flatten().topk(min(4, int(wrong.sum()))).indices.tolist()
for row, position in (divmod(index, kl.shape[1]) for index in worst):
    best, came = int(favourite[row, position]), int(text[row, position + 2])
    said = {"clean": p_logits[row, position + 1].softmax(-1), "patched": q_logits[row, position + 1].softmax(-1)}
    if reads_stories(model):
        said["truth"] = says["truth"][row, position]
    print(f"… {model.tokenizer.decode(text[row, max(1, position - 8) : position + 2])}\n    "
          f"favourite {model.tokenizer.decode([best])!r} and what came, {model.tokenizer.decode([came])!r}: "
          + ", ".join(f"{name} {probs[best]:.2f} {probs[came]:.2f}" for name, probs in said.items())
          + f"; KL {kl[row, position]:.3f}, ΔCE {delta[row, position]:+.3f}")

# %% [markdown]
# Over all confident positions the model is slightly too sure: a doubt of 0.024, where 0.029 would be right. Where
# its favourite did not come it is far too sure, 0.61 for 0.50, because we selected for that. In the worst case the
# truth left no doubt about the word that came. The patch takes belief from the model's mistake, and gives the right
# word still less. Should an explanation of the model share its mistakes? That is the argument.
#
# ### The tail
#
# Now the compromise. Each token's share of a KL can be written as $p \ln(p/q) - p + q$, never negative. How much
# comes from tokens that the model thinks unlikely, and how much of a squared log-probability distance?

# %%
unlikely = p_logits[:, 1:-1].softmax(-1) < 0.01
terms = kl_terms(p_logits[:, 1:-1], q_logits[:, 1:-1])
squared = (log_softmax(p_logits) - log_softmax(q_logits))[:, 1:-1] ** 2
print(f"tokens below 1 %: {unlikely.float().mean():.1%} of the vocabulary; "
      f"{terms[unlikely].sum() / terms.sum():.0%} of the KL; "
      f"{squared[unlikely].sum() / squared.sum():.1%} of the squared log-probability distance")

# %% [markdown]
# The cursed metric is about the vocabulary's tail and nothing else. The KL is not, but it does not ignore the tail
# either.
#
# ## 6 · Compared with what?
#
# The thread ends with a wish for baselines that give the noise floor. Two have been proposed, both with a point
# **as far away** in the activation's place, in a random direction or in one that varies **as the activations do**.
#
# **Predict:** how many times as much harm (KL) does the reconstruction do as the first? And as the second?

# %%
predict("08.epsilon_ratio", None, unit="times")
predict("08.covariance_ratio", None, unit="times")

# %% [markdown]
# Gurnee (2024) proposed the first. In GPT-2 small the reconstruction did about 2 to 4.5 times its harm (quoted):
# "pathological errors". Write that baseline:

# %%
@exercise("08.epsilon_random")
def epsilon_random(
    x: Float[Tensor, "*pos d"], x_hat: Float[Tensor, "*pos d"], noise: Float[Tensor, "*pos d"]
) -> Float[Tensor, "*pos d"]:
    """The point as far from x as x_hat is, but in the direction of `noise`.

    Each position has its own distance; `noise` may have any length.
    """
    raise NotImplementedError


# %% [markdown]
# One may object that x̂ is also *shorter* than x, and the random point longer. So rotate x̂ about x: keep its part
# along x, and give the rest a random direction.

# %%
@exercise("08.theta_random")
def theta_random(
    x: Float[Tensor, "*pos d"], x_hat: Float[Tensor, "*pos d"], noise: Float[Tensor, "*pos d"]
) -> Float[Tensor, "*pos d"]:
    """x_hat with its part across x turned into the direction that `noise` has across x.

    Its length, its distance from x and its angle with x are those of x_hat.
    """
    raise NotImplementedError


# %% [markdown]
# Lee and Heimersheim (2024) objected that activations hardly ever differ along a random direction, where the model
# may not listen. A fair random error varies as they do: draw its direction with **their covariance** $\Sigma$, as
# $gR$ from white noise $g$, with $R^\top R = \Sigma$.

# %%
@exercise("08.covariance_root")
def covariance_root(covariance: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """Any R with R.T @ R = covariance, so that noise @ R has this covariance if the noise is white.

    `torch.linalg.eigh` gives variances and directions. Rounding may make a variance slightly
    negative: then it is 0.
    """
    raise NotImplementedError


# %% [markdown]
# Now put each kind of point in the activation's place, at the *same distance*, and measure.

# %%
class Instead:
    """Answers an activation x with make(x, x̂, g), where g is white noise."""

    hook_name = HOOK

    def __init__(self, make):
        self.make, self.rng = make, torch.Generator().manual_seed(0)

    def encode(self, x):
        return x

    def decode(self, x):
        return self.make(x, sae(x), torch.randn(x.shape, generator=self.rng).to(x))


x = collect_activations(model, HOOK, text[:16]).to(model.cfg.device)            # [tokens, d]
R = covariance_root(torch.cov(x.T)).to(x)
makes = {"x̂": lambda x, x_hat, g: x_hat, "ε-random": epsilon_random, "θ-random": theta_random,
         "covariance": lambda x, x_hat, g: epsilon_random(x, x_hat, g @ R)}
by_hand = {}
for name, make in makes.items():
    new = Instead(make).decode(x)
    cosine = torch.nn.functional.cosine_similarity(x, new, dim=-1)
    instead, times = Instead(make), 5 if name == "covariance" else 1        # the one whose harm varies most by the draw
    by_hand[name] = sum(kl_divergence(*patched_logits(model, instead, text))[:, 1:-1].mean(1).cpu()
                        for _ in range(times)) / times                      # [text]
    print(f"{name:11} distance {(new - x).norm(dim=-1).mean():7.3f}   length / ‖x‖ "
          f"{(new.norm(dim=-1) / x.norm(dim=-1)).mean():.4f}   cosine {cosine.mean():.4f}   "
          f"KL {by_hand[name].mean():.4f} nats")
reveal("08.epsilon_ratio", by_hand["x̂"].mean() / by_hand["ε-random"].mean())
reveal("08.covariance_ratio", by_hand["x̂"].mean() / by_hand["covariance"].mean())
measured("SAE / ε-random", by_hand["x̂"].mean() / by_hand["ε-random"].mean(), published="2 to 4.5 (GPT-2 small, quoted)")
measured("SAE / covariance-matched", by_hand["x̂"].mean() / by_hand["covariance"].mean())

# %% [markdown]
# `noise_floor` does the same with several draws and intervals. It adds `norm_only`, x at the length of x̂, and
# `norm_corrected`, x̂ at the length of x.

# %%
claim("the reconstruction does more harm than ε-random points", by_hand["x̂"], ">", by_hand["ε-random"], unit="nats")
claim("it does less harm than points with the activations' covariance", by_hand["x̂"], "<", by_hand["covariance"],
      unit="nats")
floor = noise_floor(model, sae, text, draws=3 if MODEL == "tiny" else 2)
display(floor.to_frame().drop(columns="spread of draws").round(4))

# %%
RANDOM = ("epsilon_random", "theta_random", "covariance_random")
floors = {f"topk-{LAYER}": floor}
for name in shipped_saes(MODEL):
    if name not in floors:
        floors[name] = noise_floor(model, load_shipped_sae(MODEL, name), text[:20], RANDOM, draws=2)
print("the reconstruction's KL over that of each baseline (95 %, over sequences)")
print(" " * 19 + "   ".join(f"{kind:18}" for kind in RANDOM))
for name, each in floors.items():
    cells = [f"{each.ratio[kind]:5.2f} ({each.ratio_intervals[kind][0]:.2f}–{each.ratio_intervals[kind][1]:.2f})"
             for kind in RANDOM]
    print(f"{name:18}" + "   ".join(f"{cell:18}" for cell in cells))
figure = plot_bars({kind.replace("_", "-"): {name: each.ratio[kind] for name, each in floors.items()}
                    for kind in RANDOM},
                   "KL of the reconstruction / KL of the random point (95 %)", title=f"{MODEL}: 1 is like noise")
axis, ratios = figure.axes[0], [(each, kind) for kind in RANDOM for each in floors.values()]
axis.axvline(1, color="black", linestyle="--", linewidth=1)
for bar, (each, kind) in zip(axis.patches, ratios):
    axis.plot(each.ratio_intervals[kind], [bar.get_y() + bar.get_height() / 2] * 2, color="black", linewidth=1)
display(figure)

# %% [markdown]
# Both sides are right, each about its own baseline. All our reconstructions do two to nearly five times the harm of
# random directions: the error does not point just anywhere. Against errors that vary as activations do, several
# clearly do less harm, and none clearly more. One reading: *most directions do not matter to the model, and the
# error lies among those that do, because that is where the activations are.* So how much of the error lies along
# the directions in which activations vary most?

# %%
directions = torch.linalg.eigh(torch.cov(x.T))[1].flip(1)[:, : x.shape[1] // 8]     # an eighth of all, [d, d / 8]
rows = len(text[:16])


def share_in(vectors):
    """The share of the squared lengths that lies along these directions, for each text."""
    along, whole = (each.pow(2).sum(-1).reshape(rows, -1).sum(1).cpu() for each in (vectors @ directions, vectors))
    return along / whole


g = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
claim("the error lies along them more than a random one does", share_in(sae(x) - x), ">", share_in(g), unit="share")
print(f"along the first eighth of the directions: {share_in(x - x.mean(0)).mean():.0%} of the activations' variance")

# %% [markdown]
# Nearly half more than by chance, and far less than the activations. So that reading explains little: four fifths
# of the error lie elsewhere, and it does twice the harm. What it hits must be finer than these directions.
#
# `norm_only` is nearly 0: that x̂ is too short does not explain the harm. `norm_corrected` even does slightly more.
#
# ### Where does the harm go?
#
# Patch a single position, and see what follows. One position is one kind of word, so take several.

# %%
curves, at = [], torch.linspace(8, LENGTH - 20, 6).int().tolist()
for position in at:
    by_position = noise_floor(model, sae, text[:16], (), draws=1, at=position).kl_by_position["sae"]
    curves.append(by_position[position : LENGTH - 1].nan_to_num(0))
shares = torch.tensor([curve[0] / curve.sum() for curve in curves])
print(f"of the harm of one patched position, {sum(curve[0] for curve in curves) / sum(map(torch.sum, curves)):.0%} is done "
      f"there; by position {', '.join(f'{share:.0%}' for share in shares)}")
figure = plot_by_position({"mean": torch.stack([curve[:12] for curve in curves]).mean(0)}, "KL (nats)",
                          x=torch.arange(12), xlabel="positions after the patch",
                          title=f"{MODEL}: one position patched, mean over {len(at)}")
figure.axes[0].set_yscale("log")
display(figure)

# %% [markdown]
# Most of the harm stays there, but how much differs from position to position.
#
# ## 7 · The floor that others can only guess
#
# What KL is too small to care about? On stories the model's own distance from the truth, KL(P‖p), is a unit for
# what the autoencoder adds. The cost of bfloat16, the coarse number format in which many models run, is another.

# %%
if reads_stories(model):
    true_floor = true_noise_floor(model, sae, StoryLanguage(77).sample(48, LENGTH))
    display(true_floor.to_frame().round(5))
    quantities = {name: (true_floor.mean[name], *true_floor.intervals[name]) for name in ("kl", "kl_truth_model")}
    claim("the autoencoder adds less than the model's own error", quantities["kl"], "<", quantities["kl_truth_model"],
          unit="nats")
    measured("KL(truth‖model)", true_floor.mean["kl_truth_model"], unit="nats")
    measured("KL of bfloat16", true_floor.mean["kl_bfloat16"], unit="nats")

# %% [markdown]
# In `tiny` the autoencoder's KL is a hundred times what bfloat16 costs, but smaller than the error the model makes
# by itself. For natural text nobody knows that error.
#
# ## 8 · Does it hold in a real language model?

# %%
real_model = load_real_model()

# %%
if real_model is not None:
    real_sae = topk_sae_for(real_model)
    texts = {"its own": own_text(real_model, 16, 80),
             "our stories": stories_in_english(real_model, 16, 80)}
    for name, tokens in texts.items():
        report = evaluate_sae(real_model, real_sae, tokens, batch_size=4, everything=False)
        low, high = report.intervals["delta_ce"]
        print(f"text: {name:12} KL {report.kl:.3f} nats, "
              f"ΔCE {report.delta_ce:.3f} ({low:.3f} to {high:.3f})")
        measured(f"SmolLM2: ΔCE / KL on {name}", report.delta_ce / report.kl)

# %%
if real_model is not None:
    real_floor = noise_floor(real_model, real_sae, texts["its own"][:8], draws=2, batch_size=4,
                             kinds=("epsilon_random", "covariance_random"))
    display(real_floor.to_frame().drop(columns="spread of draws").round(4))
    measured("SmolLM2: SAE / ε-random", real_floor.ratio["epsilon_random"])
    measured("SmolLM2: SAE / covariance-matched", real_floor.ratio["covariance_random"])

# %% [markdown]
# The first argument, decided in a real model. On its own text ΔCE and KL agree. On stories, which it did not write,
# **ΔCE is about half of the KL**. The rest term is negative: on the whole the patch lowers overrated tokens or
# raises underrated ones. Reporting only ΔCE would have reported half the damage.
#
# The baselines are closer together than in `tiny`, and the reconstruction does about two thirds more harm than
# either. Which paper is right depends on the model and the dictionary: measure your own.
#
# ## 9 · So which would you report?
#
# A checklist, each line with its section:
#
# 1. **KL(p‖q)**, in nats per token, on stated text, with an interval from sequences: what changed. It needs no
#    labels, but as many *texts* as their differences ask for (1, 2).
# 2. **ΔCE** beside it, on text that matters to you: what it cost, of either sign (1). Say how many tokens and texts
#    (2).
# 3. Two autoencoders: **paired**, on as many texts as a pilot says (2).
# 4. The **score** only with its D and its layer, and never to compare layers (4).
# 5. **Not the losses alone**: their noise is the text's (4).
# 6. The distribution over texts, not only the mean (1), and some of the worst cases (5).
# 7. The **ratio to a baseline**, and which: random directions, or errors that vary as activations do (6).
# 8. A unit: the model's own error where it is known, the cost of the number format everywhere (7).
#
# ## On your own
#
# On stories topk-2 does less harm than gated-2 (`harm` on `text` will show it). Is that so on text that the model
# itself writes? Hand in a claim, a number with its interval over texts, the control or the pairing, what would have
# refuted it, and what it does not show. (`written` holds 96 such texts. Look before you average.)

# %% tags=["solution-only"]
if MODEL == "tiny":
    (_, topk), (_, gated) = (harm(load_shipped_sae(MODEL, name), written) for name in ("topk-2", "gated-2"))
    claim("on most of its own texts topk-2 does less harm than gated-2", (topk < gated).float(), ">", 0.5, unit="of the texts")
    for name, these in {"all texts": topk < 9, "without ten non-stories": topk < topk.sort().values[-10]}.items():
        print(f"{name}: mean difference in KL {(topk - gated)[these].mean():+.4f} nats, "
              f"in the worst text {(topk - gated)[these].max():+.2f}")

# %% [markdown] tags=["solution-only"]
# **Claim:** on most texts that `tiny` writes topk-2 does less harm than gated-2. **Number** above, paired, over 96
# texts; one half would be chance. **Refuted by** an interval that holds one half. The *mean* says the opposite,
# because a few texts of random words that repeat cost topk-2 up to one nat more. Without them topk-2 is better by a
# small margin. **Not shown:** which to use, since that depends on whether such texts matter to you. The rule that
# left texts out was made after a look at them, so the last line is a description. A test would be a fresh sample,
# with the rule fixed before.

# %% [markdown]
# ## What this does not show
#
# - Which *latents* are at fault, or whether the error could be predicted from x (Engels et al. 2024 find that about
#   half of it, and over 90 % of its norm, can).
# - That a low KL means the model computes in the same way. Lesson 09 asks a circuit.
# - What training directly on the KL would do (Braun et al. 2024).
#
# ## Summary
#
# - E[ΔCE] = KL(P‖q) − KL(P‖p). It is KL(p‖q) on the model's own text, and elsewhere a rest of either sign remains.
# - From labels a KL of k nats needs *at least* 200 / k tokens to be known to a tenth, and more if texts differ.
#   Compare autoencoders paired, on a planned number of texts.
# - The score is ΔCE on another scale. L_zero is not what is noisy.
# - A few confidently wrong tokens carry a good part of the KL. Selecting them by the outcome selects the model's
#   overestimates.
# - An error is pathological or not *against a baseline*.
#
# Sources: Gurnee, "SAE reconstruction errors are (empirically) pathological" (2024), and the comments below it; Lee
# and Heimersheim, arXiv 2410.12555; Engels et al., arXiv 2410.14670; Braun et al., arXiv 2405.12241. The threads of
# sections 1, 3 and 4 are comments below posts on autoencoders of 2024, their positions given in our own words.
#
# Next: **09 · The capstone**: does the autoencoder keep the circuit?

# %% tags=["exercise-only"]
progress("08")
