# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 01 · Repeated tokens
#
# **The question.** Show a language model fifty random tokens, then the same fifty again. On the first copy
# it can only guess. On the second, a model that has learned to look back knows what comes next. How large
# is the difference, and how do you measure it without fooling yourself?
#
# This is the behaviour that the next four lessons take apart. Here we only measure it, carefully: which
# positions count, what chance is, and what a single unforeseeable token does to an average.
#
# **You need:** lesson 00 (logits, `exercise`, `predict`).

# %%
import math
import os

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from course_utils.exercises import exercise, hint, predict, progress, reveal, solution
from course_utils.measured import measured
from course_utils.models import bos_token_id, load_model, load_real_model
from course_utils.repeated_tokens import check_repeated_length, repeated_token_report
from course_utils.viz import plot_by_position

MODEL = os.environ.get("COURSE_MODEL", "tiny")      # or write a name here, such as "smollm2-135m"
SEQ_LEN, BATCH = 50, 30                             # two copies of 50 tokens, 30 sequences
model = load_model(MODEL)
print(f"{MODEL}: {model.cfg.n_layers} layers of {model.cfg.n_heads} heads, {model.cfg.d_vocab} tokens")

# %% [markdown]
# ## 1 · The sequence
#
# `[BOS, r1 … rn, r1 … rn]`: the beginning-of-sequence token, then n tokens drawn uniformly from the *whole*
# vocabulary, then the same n tokens again. Random tokens make the test clean: nothing about the words
# themselves helps, so whatever the model gains on the second copy it must have read from the first.
#
# BOS comes first because the model was trained that way. (The article that this lesson follows says in its
# text that BOS comes last; its code puts it first, and the code is right.)
#
# `check_repeated_length(model, seq_len, batch)` refuses lengths that do not fit into the model's context;
# you may call it in your function. `bos_token_id(model)` is the id of BOS.

# %%
@exercise("01.generate_repeated_tokens")
def generate_repeated_tokens(
    model: TransformerBridge, seq_len: int, batch: int = 1, *, seed: int | None = None
) -> Int[Tensor, "batch 1+2*seq_len"]:
    """BOS, then `seq_len` tokens drawn uniformly from the whole vocabulary, then the same tokens again.

    The same seed gives the same tokens; None draws from torch's global stream.
    """
    raise NotImplementedError


# %%
tokens = generate_repeated_tokens(model, SEQ_LEN, BATCH, seed=0)
short = generate_repeated_tokens(model, 4, seed=1)
print("shape", tuple(tokens.shape))
print("a short one:", [model.tokenizer.decode([token]) for token in short[0].tolist()])

# %% [markdown]
# ## 2 · What is chance?
#
# Scores are log-probabilities of the token that came, in nats (natural logarithm). Before you look at a
# model, know what guessing would give.

# %%
@exercise("01.chance_log_prob")
def chance_log_prob(d_vocab: int) -> float:
    """Log-probability (nats) of any token under the uniform distribution over d_vocab tokens."""
    raise NotImplementedError


# %%
chance = chance_log_prob(model.cfg.d_vocab)
print(f"chance for {model.cfg.d_vocab} tokens: {chance:.3f} nats")

# %% [markdown]
# Chance is the best that *anybody* can do on the first copy, on average: its tokens are drawn uniformly, so
# every confidence in one token is paid for at the others. A model can easily do worse.
#
# **Predict before you run:** the mean log-probability on the first copy, and on the second (0 would be
# certainty).

# %%
predict("01.first_half", None)
predict("01.second_half", None)

# %% [markdown]
# ## 3 · Score every token
#
# Logits at position j are about token j + 1. So the last logits have nothing to be compared with, and the
# first token is predicted by nobody: n positions give n − 1 scores.

# %%
@exercise("01.correct_token_log_probs")
def correct_token_log_probs(
    logits: Float[Tensor, "batch pos vocab"], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos-1"]:
    """Log-probability (nats) of each token that came: entry j scores tokens[:, j + 1] given tokens[:, :j + 1]."""
    raise NotImplementedError


# %% [markdown]
# We run a few sequences at a time: a vocabulary of fifty thousand makes logits large, and all thirty
# sequences at once would not fit everywhere.

# %%
with torch.no_grad():
    log_probs = torch.cat([correct_token_log_probs(model(rows), rows).cpu() for rows in tokens.split(8)])
plot_by_position(
    {"mean over sequences": log_probs.mean(dim=0), "chance": torch.full((2 * SEQ_LEN, ), chance)},
    ylabel="log-probability of the right token (nats)", x=torch.arange(1, 2 * SEQ_LEN + 1),
    xlabel="position of the token that is predicted", boundary=SEQ_LEN + 1,
    title=f"{MODEL} on repeated random tokens")

# %% [markdown]
# Look at the dotted line: it marks the first token of the second copy. Nothing in the sequence says that a
# repeat is about to begin; only once this token has been seen can a model know where it is. The best it can
# do is to *hedge*: at every position of the first copy, put some probability on "it begins again here".
#
# `tiny` has learned to, and boldly. It was trained on periods from 2 to 63, all equally likely: once 50
# tokens have come without a repeat, the periods 50 to 63 are left, and one chance in 14 is ln(1/14) = −2.64
# nats. But its training counted the tokens of a repeat ten times as much as noise, which makes the bet
# worth ten times more: ln(10/23) = −0.83 nats. A model that never saw such repeats has no reason to hedge
# at all.
#
# ## 4 · Three numbers instead of two
#
# So a fair report has three parts: the first copy, the boundary token, and the rest of the second copy.

# %%
@exercise("01.split_halves")
def split_halves(log_probs: Float[Tensor, "batch 2*seq_len"], seq_len: int) -> tuple[float, float, float]:
    """Mean log-prob (nats) of the first copy, of the boundary token, and of the rest of the second copy."""
    raise NotImplementedError


# %%
first, boundary, inner = split_halves(log_probs, SEQ_LEN)
print(f"first copy {first:.3f} nats | boundary token {boundary:.3f} | rest of the second copy {inner:.3f}")

# %% [markdown]
# So the boundary token of `tiny` lies between the honest bet (−2.64) and the best one under its training (−0.83),
# nearer the bold one.
#
# The article reports the mean over *all* n tokens of the second copy, boundary included. How much does that
# one token weigh?

# %%
@exercise("01.with_boundary")
def with_boundary(inner: float, boundary: float, seq_len: int) -> float:
    """Mean over all seq_len tokens of the second copy, from the boundary token and the mean of the others."""
    raise NotImplementedError


# %%
second = with_boundary(inner, boundary, SEQ_LEN)
print(f"{MODEL}: rest of the second copy {inner:.3f} nats; with the boundary token {second:.3f}")
reveal("01.first_half", first)
reveal("01.second_half", second)

# %% [markdown]
# The same arithmetic on numbers published for GPT-2 small: TransformerLens's main demo stores a loss of
# 0.399 nats on the second copy, and 0.183 without the boundary token. If both are means over copies of 50
# tokens, the boundary token alone must have had the loss below: one token in fifty, and more than half of the
# reported loss.

# %%
loss_with, loss_without = 0.399, 0.183              # quoted: stored in TransformerLens Main_Demo
boundary_loss = 50 * loss_with - 49 * loss_without
print(f"boundary loss implied: {boundary_loss:.2f} nats")
print(f"check: {with_boundary(loss_without, boundary_loss, 50):.3f}")

# %% [markdown]
# **Read on with this in mind:** a mean over the second copy is not a property of the model alone. It
# depends on n, because the boundary's share is 1/n, and on whether the boundary was counted. A published
# number that says neither cannot be compared with yours.
#
# ## 5 · How often is the best guess right?

# %%
@exercise("01.top1_correct")
def top1_correct(
    logits: Float[Tensor, "batch pos vocab"], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos-1"]:
    """1 where the most likely next token is the one that came, else 0."""
    raise NotImplementedError


# %%
with torch.no_grad():
    correct = torch.cat([top1_correct(model(rows), rows).cpu() for rows in tokens.split(8)])
print(f"accuracy: first copy {correct[:, :SEQ_LEN].mean():.3f}, second copy {correct[:, SEQ_LEN:].mean():.3f}, "
      f"without the boundary token {correct[:, SEQ_LEN + 1:].mean():.3f}")

# %% [markdown]
# Mind the boundary here too. For a model that does not hedge it is a miss, and accuracy cannot pass 49/50 =
# 0.98. For one that does, "it begins again" is the best guess nearly *everywhere* in the first copy (any other
# token is one in a thousand), and it comes true exactly once. That is why a second-half accuracy above 0.98
# is not a mistake, and not clairvoyance either.
#
# Everything so far is in the course's library as `repeated_token_report`; from here on we call that. It
# must agree with what you just computed by hand:

# %%
report = repeated_token_report(model, SEQ_LEN, BATCH, seed=0)
print(f"library: {report.first_half_log_prob:.3f} | {report.second_half_log_prob:.3f} "
      f"(± {report.standard_error:.3f} standard error over sequences) | accuracy {report.second_half_accuracy:.3f}")
same = math.isclose(report.second_half_log_prob, second, abs_tol=1e-4)
print("agrees with the hand-made numbers:", same)

# %%
bound = MODEL == "tiny"                     # the course promises these bounds for its own model only
measured("first copy, log-prob", report.first_half_log_prob, unit="nats",
         at_most=chance if bound else None, published="-13.898 (GPT-2 small, quoted)")
measured("second copy, log-prob", report.second_half_log_prob, unit="nats",
         at_least=-0.4 if bound else None, published="-0.644 (GPT-2 small, quoted)")
measured("second copy, accuracy", report.second_half_accuracy, at_least=0.95 if bound else None,
         published="0.93 (GPT-2 small, quoted)")

# %% [markdown]
# ## 6 · How long a repeat does it need?
#
# If the model really looks back for *this* token, a copy of 5 tokens should work as well as one of 50. We
# leave the boundary token out, so that lengths can be compared.

# %%
lengths = [3, 5, 10, 20, 35, 50]
reports = [repeated_token_report(model, length, batch=8, seed=1) for length in lengths]
plot_by_position(
    {"second copy, boundary left out": torch.tensor([r.inner_log_prob for r in reports]),
     "first copy": torch.tensor([r.first_half_log_prob for r in reports])},
    ylabel="mean log-probability (nats)", x=torch.tensor(lengths), xlabel="tokens in one copy")

# %% [markdown]
# In `tiny` it does: three tokens are enough.
#
# ## 7 · Beside the published numbers
#
# The article gives, for GPT-2 small, −13.898 and −0.644 nats and accuracies of 0.0 and 0.93. These are
# *quoted*: we have not recomputed them here (with a network, set `COURSE_MODEL=gpt2-small` and run this
# notebook again). It does not say how long its copies were, nor how many sequences it averaged, and its
# slices include the boundary token.

# %%
rows = [("log-prob, first copy (nats)", report.first_half_log_prob, "−13.898"),
        ("log-prob, second copy (nats)", report.second_half_log_prob, "−0.644"),
        ("accuracy, first copy", report.first_half_accuracy, "0.0"),
        ("accuracy, second copy", report.second_half_accuracy, "0.93")]
print(f"{'':32}{MODEL:>14}{'GPT-2 small (quoted)':>24}")
for name, ours, published in rows:
    print(f"{name:32}{ours:>14.3f}{published:>24}")

# %% [markdown]
# Compare each first copy with *its* chance level: a larger vocabulary makes chance lower (−10.82 nats for
# GPT-2's 50,257 tokens). What makes a model do worse than chance there is confidence. Trained on text, it
# expects words that random tokens do not bring. `tiny` pays for its hedge, too: what it bets on "it begins
# again" is missing elsewhere.
#
# ## 8 · Does it hold in a real language model?

# %%
real_model = load_real_model()

# %%
if real_model is not None:
    real = repeated_token_report(real_model, SEQ_LEN, batch=4, seed=0)
    real_chance = chance_log_prob(real_model.cfg.d_vocab)
    print(f"first copy  {real.first_half_log_prob:.2f} nats (chance {real_chance:.2f})")
    print(f"second copy {real.second_half_log_prob:.2f} ± {real.standard_error:.2f} nats, "
          f"accuracy {real.second_half_accuracy:.2f}")
    measured("SmolLM2: second copy, log-prob", real.second_half_log_prob, unit="nats")

# %%
if real_model is not None:
    display(plot_by_position(
        {"mean over 4 sequences": real.log_probs.mean(dim=0).cpu()},
        ylabel="log-probability of the right token (nats)", x=torch.arange(1, 2 * SEQ_LEN + 1),
        xlabel="position of the token that is predicted", boundary=SEQ_LEN + 1,
        title="SmolLM2-135M on repeated random tokens"))

# %% [markdown]
# The rise is there, in a model that nobody trained on repeated noise: it comes from reading text. It is no
# jump: some ten tokens pass before the model makes much use of the repeat. Note the standard error: with four
# sequences, the second digit of such a number means little.
#
# ## What this does not show
#
# - *That* the model copies, not *how*. Other mechanisms would give the same curve: counting positions, say.
#   (Does it? Lesson 02 looks at the heads; lesson 03 takes them away.)
# - Random tokens are an odd diet. A model may do this on noise and something subtler in text.
# - A token that happens to occur twice within a copy is harder: two different tokens follow it. With a
#   small vocabulary this costs a little accuracy, and we have not separated it out.
#
# ## Summary
#
# - The sequence is `[BOS, r1 … rn, r1 … rn]`; logits at j are about token j + 1.
# - Chance is −ln V nats. The first copy cannot be better than that on average, and is often worse.
# - The second copy's first token can only be hedged, not known. Report it apart, or say that you counted
#   it.
# - The jump between the copies is the behaviour to be explained.
#
# Sources: Shuyang Xiang, "How to Interpret GPT2-Small" (2024), for the experiment and the quoted numbers;
# the TransformerLens demo notebooks for the loss with and without the boundary token; Olsson et al.,
# "In-context Learning and Induction Heads" (2022), for why anyone cares.
#
# Next: **02 · Induction heads**.

# %% tags=["exercise-only"]
progress("01")
