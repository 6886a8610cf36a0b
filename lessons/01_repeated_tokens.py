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
# **The question.** Show a language model fifty random tokens, then the same fifty again. On the first copy it can
# only guess. On the second, a model that has learned to look back knows what comes next. How large is the difference,
# and how do you measure it without fooling yourself?
#
# The next four lessons take this behaviour apart. Here we only measure it, carefully.
#
# **You need:** lesson 00 (logits, `exercise`, `predict`).

# %% tags=["parameters"]
import math
import os

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from course_utils.claims import claim, estimate
from course_utils.exercises import exercise, hint, predict, progress, reveal, solution
from course_utils.measured import measured
from course_utils.models import bos_token_id, load_model, load_real_model
from course_utils.repeated_tokens import check_repeated_length, repeated_token_report
from course_utils.viz import plot_by_position

MODEL = os.environ.get("COURSE_MODEL", "tiny")      # or write a name here, such as "smollm2-135m"
SEQ_LEN, BATCH = 50, 30                             # two copies of 50 tokens, 30 sequences

# %%
model = load_model(MODEL)
print(f"{MODEL}: {model.cfg.n_layers} layers of {model.cfg.n_heads} heads, {model.cfg.d_vocab} tokens")

# %% [markdown]
# ## 1 · The sequence
#
# `[BOS, r1 … rn, r1 … rn]`: the beginning-of-sequence token, n tokens drawn uniformly from the *whole* vocabulary,
# and the same n tokens again. Random tokens say nothing about each other, so any gain on the second copy must have
# been read from the first.
#
# BOS comes first, as in training. (This lesson follows an article by S. Xiang, see Sources, whose text puts BOS last;
# its code, rightly, first.)
#
# You may use `check_repeated_length(model, seq_len, batch)`, which refuses lengths that do not fit into the model's
# context, and `bos_token_id(model)`.

# %%
@exercise("01.generate_repeated_tokens")
def generate_repeated_tokens(
    model: TransformerBridge, seq_len: int, batch: int = 1, *, seed: int | None = None
) -> Int[Tensor, "batch 1+2*seq_len"]:
    """BOS, then `seq_len` tokens drawn uniformly from the whole vocabulary, then the same tokens again.

    The same seed gives the same tokens, and leaves torch's global random numbers as they were (use a
    `torch.Generator`); None draws from those.
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
# Scores are log-probabilities of the actual next token, in nats (natural logarithm). First, what would guessing give?

# %%
@exercise("01.chance_log_prob")
def chance_log_prob(d_vocab: int) -> float:
    """Log-probability (nats) of any token under the uniform distribution over d_vocab tokens."""
    raise NotImplementedError


# %%
chance = chance_log_prob(model.cfg.d_vocab)
print(f"chance for {model.cfg.d_vocab} tokens: {chance:.3f} nats")

# %% [markdown]
# On average, chance is the best that *anybody* can do on the first copy: whatever probability you add to one token
# you take from others that are just as likely. A model can easily do worse.
#
# **Predict before you run:** the mean log-probability on the first copy, and on the second (0 would be certainty).
# And after 50 tokens without a repeat, what probability does the model give to "it begins again now", that is, to the
# first token?

# %%
predict("01.first_half", None)
predict("01.second_half", None)
predict("01.hedge", None, unit="(probability)")

# %% [markdown]
# ## 3 · Score every token
#
# Logits at position j are about token j + 1. The last logits have no target, and nothing predicts the first token
# (BOS): n positions give n − 1 scores.

# %%
@exercise("01.correct_token_log_probs")
def correct_token_log_probs(
    logits: Float[Tensor, "batch pos vocab"], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos-1"]:
    """Log-probability (nats) of each actual next token: entry j scores tokens[:, j + 1] given tokens[:, :j + 1]."""
    raise NotImplementedError


# %% [markdown]
# Large vocabularies make large logits, so we run a few sequences at a time.

# %%
log_probs, bets, guesses, average = [], [], [], 0.0
for rows in tokens.split(8):
    logits = model(rows)                            # [8, pos, vocab]
    log_probs.append(correct_token_log_probs(logits, rows).cpu())
    guesses.append(logits.argmax(dim=-1).cpu())
    first_two = rows[:, None, 1:3].expand(-1, SEQ_LEN, -1)          # their probabilities, all along the first copy
    on_first_copy = logits[:, 1:SEQ_LEN + 1].softmax(dim=-1)
    bets.append(on_first_copy.gather(2, first_two).cpu())
    no_bet = on_first_copy.scatter(2, first_two[..., :1], 0.0)      # what it predicts if the repeat does not begin
    average += (no_bet / no_bet.sum(dim=-1, keepdim=True)).sum(dim=(0, 1)).cpu() / (BATCH * SEQ_LEN)     # [vocab]
log_probs, bets, guesses = map(torch.cat, (log_probs, bets, guesses))
plot_by_position(
    {"mean over sequences": log_probs.mean(dim=0), "chance": torch.full((2 * SEQ_LEN, ), chance)},
    ylabel="log-probability of the right token (nats)", x=torch.arange(1, 2 * SEQ_LEN + 1),
    xlabel="position of the token that is predicted", boundary=SEQ_LEN + 1,
    title=f"{MODEL} on repeated random tokens")

# %% [markdown]
# The dotted line marks the first token of the second copy. Only once this token has been seen can a model know that a
# repeat has begun. Before, it can only *hedge*: at every position put some probability on "it begins again here", on
# the first token. Does it? Here is that probability, beside the second token's:

# %%
again, other = bets.unbind(dim=-1)                  # [batch, seq_len]; entry j − 1: after j tokens of the first copy
j = torch.arange(1, SEQ_LEN + 1)
lines = {f"{MODEL}: the first token, again": again.mean(dim=0), f"{MODEL}: the second token": other.mean(dim=0)}
if MODEL == "tiny":
    lines |= {"an honest bet, 1 / (64 − j)": 1 / (64 - j), "a bold bet, 10 / (10 + 63 − j)": 10 / (10 + 63 - j)}
plot_by_position(lines, ylabel="probability", x=j, xlabel="tokens of the first copy seen so far (j)",
                 title="Betting that the repeat begins now")

# %%
reveal("01.hedge", again[:, -1].mean())
claim("after 50 tokens the first token is more than ten times as likely as the second",
      again[:, -1], ">", 10 * other[:, -1])
if MODEL == "tiny":
    claim("its bet is bolder than an honest one", again[:, -1], ">", 1 / 14)
    earlier = load_model("tiny", step=1200)(tokens).softmax(dim=-1)[:, 1:SEQ_LEN + 1]
    earlier = earlier.gather(2, tokens[:, None, 1:2].expand(-1, SEQ_LEN, -1))[..., 0].cpu()
    for step, bet in ((1200, earlier), ("last", again)):            # j = 2, 4, … 20 against j = 3, 5, … 21
        zigzag = (bet[:, 1:20:2] - bet[:, 2:21:2]).mean(dim=1)
        print(f"even j minus odd j, step {step}: {zigzag.mean():.3f} ± {2 * zigzag.std() / BATCH**0.5:.3f}")
    twice = (tokens[:, 28] == tokens[:, 1]).cpu()                       # the first token is also the 28th
    print(f"the second token at j = 28: {other[twice, 27].mean():.3f} in the {twice.sum()} sequences whose first token "
          f"is also the 28th, {other[~twice, 27].mean():.3f} in the others")

# %% [markdown]
# `tiny` bets, and boldly. It was trained on periods from 2 to 63, all equally likely (in the first 600 steps only
# short ones). After $j$ tokens without a repeat $64 - j$ periods are left, so an honest bet is $1/(64 - j)$. But its
# training counted the tokens of a repeat ten times as much as noise. In one of the $64 - j$ cases a bet $b$ wins: it
# scores $\ln b$, counted 10 times. In the other $63 - j$ it loses: the probability of the noise that follows shrinks by
# the factor $1 - b$, counted once. Their sum, $10 \ln b + (63 - j) \ln(1 - b)$, is largest at $b = 10/(10 + 63 - j)$.
# At $j = 50$ that is 10/23, so a win scores $\ln(10/23) = -0.83$ nats, against $\ln(1/14) = -2.64$ for the honest bet.
# (Periods and weights are from `training/train_tiny.py`.) If you expected 1/14, you asked what is *true*. Training asks
# what is *paid for*.
#
# The second token's spike at $j = 28$ comes from two of the 30 sequences, in which the first token happens to come
# again there: `tiny` takes it for the repeat. The zigzag (even minus odd $j$, printed above) is not
# noise. It came after step 1200, when pairs of tokens joined the training rows; after an even number of tokens a pair
# is complete. (That this is why is a guess.)
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
# The article reports the mean over *all* n tokens of the second copy. How much does the boundary token weigh?

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
gap = log_probs[:, :SEQ_LEN] - chance
claim("on the first copy the model is worse than chance", gap.mean(dim=1), "<", 0.0, unit="nats from chance")
lost = (1 - again[:, :-1]).log()                    # what the bet takes from tokens 2 … n
copy = tokens[:, 1:SEQ_LEN].cpu()                   # [batch, n - 1]: the tokens before them
seen = (copy[:, :, None] == copy[:, None, :]).tril(-1).any(dim=-1)      # has this token occurred before?
left = gap[:, 1:] - lost
for name, part in (("the first token", gap[:, :1]), ("the bet", lost), ("after a token seen before", left * seen),
                   ("all else", left * ~seen)):
    print(f"    of this, {name}: {estimate(part.sum(dim=1) / SEQ_LEN)} nats per token of the copy")
same = average.log()[tokens[:, 2:SEQ_LEN + 1].cpu()] - chance           # if it predicted its mean at each position
claim("one prediction, the same at each position, would cost less than all else", same.sum(dim=1) / SEQ_LEN, ">",
      (left * ~seen).sum(dim=1) / SEQ_LEN, unit="nats from chance")

# %% [markdown]
# If you said "chance" for the first copy, you forgot that a model may be confident in the wrong tokens. `tiny` pays
# for expecting a story right after BOS (the first point of the first plot), for its bet at every position, and for
# copying where a token happens to come twice. The rest, nearly half of the gap, is an uneven guess over all other
# tokens. And it is not one guess: the mean of its predictions (but for the bet), made at every position, would cost
# far less. What it prefers changes from place to place; how, we have not asked.
#
# The same arithmetic on numbers published for GPT-2 small: TransformerLens's main demo stores a loss of 0.399 nats on
# the second copy, and 0.183 without the boundary token. If both are means over copies of 50 tokens, that one token
# accounts for more than half of the loss.

# %%
loss_with, loss_without = 0.399, 0.183              # quoted: stored in TransformerLens Main_Demo
boundary_loss = 50 * loss_with - 49 * loss_without
print(f"boundary loss implied: {boundary_loss:.2f} nats")
print(f"check: {with_boundary(loss_without, boundary_loss, 50):.3f}")

# %% [markdown]
# So a mean over the second copy depends on n, because the boundary's share is 1/n, and on whether the boundary was
# counted. **A published number that says neither cannot be compared with yours.**
#
# ## 5 · What else would look like this?
#
# A model could do better on the second copy without copying, by giving more probability to every token already seen.
# With 50 tokens seen out of 988, that alone could be worth $\ln(988/50) = 3.0$ nats. **Write the experiment that
# tells the two apart**: put the second copy's tokens in another order.

# %%
@exercise("01.order_gain")
def order_gain(
    model: TransformerBridge, tokens: Int[Tensor, "batch 1+2*seq_len"], seq_len: int, *, seed: int = 0
) -> Float[Tensor, "batch"]:
    """How much the order is worth to the model, in nats per token, for each sequence.

    Positive if the model gains from the order; 0 for one that knows only *which* tokens have occurred. Draw what is
    random with `seed`. The boundary token, which nobody can know, does not count.
    """
    raise NotImplementedError


# %%
gain = torch.cat([order_gain(model, rows, SEQ_LEN).cpu() for rows in tokens.split(8)])
print(f"order is worth {estimate(gain)} nats per token")
claim("the second copy is better because its tokens come in the same order", gain, ">", 0.0, unit="nats")

# %% [markdown]
# In `tiny` the order is worth more than the whole distance from chance to certainty: in another order it does much
# *worse* than chance, because it still copies. How often is its best guess right?

# %%
came = tokens.cpu()
correct = (guesses[:, :-1] == came[:, 1:]).float()
begins_again = (guesses[:, 2:SEQ_LEN + 1] == came[:, 1:2]).float()
print(f"accuracy: first copy {correct[:, :SEQ_LEN].mean():.3f}, second copy {correct[:, SEQ_LEN:].mean():.3f}, "
      f"without the boundary token {correct[:, SEQ_LEN + 1:].mean():.3f}")
print(f"'it begins again' is the best guess at {begins_again.mean():.2f} of the positions of the first copy, "
      "from the second on")

# %% [markdown]
# Mind the boundary here too. A model that does not hedge misses it, so its accuracy cannot pass 49/50 = 0.98. One that
# does can: its best guess in the first copy comes true once.
#
# From here on we call the library's `repeated_token_report`. It must agree with your numbers:

# %%
report = repeated_token_report(model, SEQ_LEN, BATCH, seed=0)
print(f"library: {report.first_half_log_prob:.3f} | {report.second_half_log_prob:.3f} "
      f"(± {report.standard_error:.3f} standard error over sequences) | accuracy {report.second_half_accuracy:.3f}")
same = math.isclose(report.second_half_log_prob, second, abs_tol=1e-4)
print("agrees with the hand-made numbers:", same)
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
# If the model really looks back for *this* token, a copy of 5 tokens should work as well as one of 50; with one
# distance learned by heart it would fail at all others. To compare lengths we leave out the boundary token and the
# first copy's first token (what follows BOS is special).

# %%
lengths = [3, 5, 10, 20, 35, 50]
reports = [repeated_token_report(model, length, batch=8, seed=1) for length in lengths]
inner_by_row = [r.log_probs[:, r.seq_len + 1:].mean(dim=1).cpu() for r in reports]
for length, values in zip(lengths, inner_by_row):
    print(f"copies of {length:2} tokens: second copy {estimate(values)} nats")
claim("a copy of 3 tokens is repeated as well as one of 50", estimate(inner_by_row[0]), "≈", estimate(inner_by_row[-1]),
      within=0.1, unit="nats")

# %%
two_errors = {"second copy, boundary left out": torch.tensor([2 * v.std() / len(v)**0.5 for v in inner_by_row])}
plot_by_position(
    {"second copy, boundary left out": torch.tensor([v.mean() for v in inner_by_row]),
     "first copy, its first token left out": torch.tensor([r.log_probs[:, 1:r.seq_len].mean().item() for r in reports])},
    ylabel="mean log-probability (nats)", x=torch.tensor(lengths), xlabel="tokens in one copy", markers=True,
    errors=two_errors, title="How long must a copy be?")

# %% [markdown]
# ## 7 · Beside the published numbers
#
# The article's numbers for GPT-2 small are *quoted*, not recomputed here (with a network, `COURSE_MODEL=gpt2-small`
# does that). It does not say how long its copies were or how many sequences it averaged, and its slices include the
# boundary token.

# %%
rows = [("log-prob, first copy (nats)", report.first_half_log_prob, "−13.898"),
        ("log-prob, second copy (nats)", report.second_half_log_prob, "−0.644"),
        ("accuracy, first copy", report.first_half_accuracy, "0.0"),
        ("accuracy, second copy", report.second_half_accuracy, "0.93")]
print(f"{'':32}{MODEL:>14}{'GPT-2 small (quoted)':>24}")
for name, ours, published in rows:
    print(f"{name:32}{ours:>14.3f}{published:>24}")

# %% [markdown]
# Compare each first copy with *its* chance level, lower for a larger vocabulary (−10.82 nats for GPT-2's 50,257
# tokens).
#
# ## 8 · Does it hold in a real language model?

# %%
real_model = load_real_model()

# %%
if real_model is not None:
    real = repeated_token_report(real_model, SEQ_LEN, batch=4, seed=0)
    real_chance = chance_log_prob(real_model.cfg.d_vocab)
    print(f"first copy  {real.first_half_log_prob:.2f} nats (chance {real_chance:.2f})")
    second_by_row = real.log_probs[:, SEQ_LEN:].mean(dim=1).cpu()
    print(f"second copy {estimate(second_by_row)} nats, accuracy {real.second_half_accuracy:.2f}")
    claim("SmolLM2: the second copy is better because its tokens come in the same order",
          order_gain(real_model, real.tokens, SEQ_LEN).cpu(), ">", 0.0, unit="nats")
    measured("SmolLM2: second copy, log-prob", real.second_half_log_prob, unit="nats")

# %%
if real_model is not None:
    display(plot_by_position(
        {"mean over 4 sequences": real.log_probs.mean(dim=0).cpu(),
         "chance": torch.full((2 * SEQ_LEN, ), real_chance)},
        ylabel="log-probability of the right token (nats)", x=torch.arange(1, 2 * SEQ_LEN + 1),
        xlabel="position of the token that is predicted", boundary=SEQ_LEN + 1,
        title="SmolLM2-135M on repeated random tokens"))

# %% [markdown]
# The rise is there, in a model that, as far as is known, nobody trained on repeated noise. It takes some ten
# tokens before the model makes much use of the repeat. With four sequences, the interval (two standard errors on each
# side) leaves even the first digit open. To halve it you need four times as many.
#
# ## On your own
#
# Is the second copy harder where a copy contains a token twice, since two different tokens have followed it? Hand in
# a claim, a number with an interval, a control, what would have refuted you, and what it does not show.
# (`report.tokens` and `report.log_probs` have what you need.)

# %% tags=["solution-only"]
many = repeated_token_report(model, 50, batch=200 if MODEL == "tiny" else 20, seed=3)
copy = many.tokens[:, 1:51].cpu()
ambiguous = (copy[:, :, None] == copy[:, None, :]).sum(dim=-1) > 1      # [batch, place]: it occurs twice in its copy
after = many.log_probs[:, 51:].cpu()                                     # entry i scores what follows place i
print(f"{ambiguous[:, :-1].sum()} of {ambiguous[:, :-1].numel()} tokens occur twice in their copy")
if ambiguous[:, :-1].sum() > 1:                                         # in a large vocabulary hardly any does
    claim("what follows a token that occurs twice is harder", after[ambiguous[:, :-1]], "<", after[~ambiguous[:, :-1]],
          unit="nats")

# %% [markdown] tags=["solution-only"]
# A model answer. After a token that occurs twice in its copy `tiny` loses a little, after any other next to nothing.
# The control is all other places of the same sequences; equal means would have refuted me. The interval is a little
# too narrow, since it treats places of one sequence as independent. The number does not show whether the model is
# torn between the two continuations or looks at the token before as well.

# %% [markdown]
# ## What this does not show
#
# - *That* the model copies, not *how*. It might count positions, with many distances learned: §6 excludes only a
#   single one. Lesson 02 looks at the heads; lesson 03 removes them.
# - Random tokens are an odd diet. In text a model may do something subtler.
#
# ## Summary
#
# - The sequence is `[BOS, r1 … rn, r1 … rn]`; logits at j are about token j + 1.
# - Chance is $-\ln V$ nats. On average the first copy cannot be better, and is often worse.
# - The second copy's first token can only be hedged. Report it separately, or say that you counted it.
# - The same tokens in another order are the control: what is left of the gain does not come from copying.
#
# Sources: Shuyang Xiang, "How to Interpret GPT2-Small" (2024), for the experiment and the quoted numbers; the
# TransformerLens demo notebooks for the loss with and without the boundary token; Olsson et al., [In-context Learning
# and Induction Heads](https://arxiv.org/abs/2209.11895) (2022), for why this matters.
#
# Next: **02 · Induction heads**.

# %% tags=["exercise-only"]
progress("01")
