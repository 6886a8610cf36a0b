# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 00 · Start here
#
# **The question.** What can you read off, and change inside, a language model while it runs?
#
# The course is built from four moves: ask a trained model for its predictions, look at what an attention head attends
# to, silence that head, and measure how far the model is from a *known* truth. This lesson takes about 45 minutes.
#
# **You need:** Python, PyTorch, and a rough idea of a transformer (tokens, attention, residual stream). No GPU, no
# network.
#
# **How the exercises work.** A cell that starts with `@exercise(...)` is yours to fill in. Running it checks your
# function and shows a card: *passed*, *wrong* (naming known mistakes) or *not yet*. `hint("00.next_token_probs")`
# gives a hint, more explicit each time, and `solution("00.next_token_probs")` the course's answer. If you leave an
# exercise open, the notebook continues with the course's own function.
#
# **How conclusions are shown.** `claim(…)` prints whether a conclusion *holds* on the model at hand: the number, what
# it is held against, and the interval of their difference, two standard errors on each side: 95 % if there are many
# texts, some 86 % if there are four. (What has no error, such as a chance level, has no interval.)

# %% tags=["parameters"]
import os
import textwrap

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from course_utils.claims import claim, estimate
from course_utils.exercises import exercise, hint, predict, progress, reveal, solution
from course_utils.language import StoryLanguage
from course_utils.measured import measured
from course_utils.models import MODELS, load_model, load_real_model
from course_utils.story_grammar import PLACES
from course_utils.viz import attention_patterns, plot_attention, plot_by_position, plot_next_tokens

MODEL = os.environ.get("COURSE_MODEL", "tiny")      # or write a name here; print(MODELS) lists them

# %% [markdown]
# ## 1 · A model
#
# The course's own model, `tiny`, has the architecture of GPT-2, but runs in milliseconds on a laptop. We trained it
# on short stories in a little language of our own, on random tokens that repeat, and later on random pairs of tokens
# (`training/train_tiny.py`).
#
# `load_model("gpt2-small")`, or any other name that TransformerLens knows, loads a model of yours in the same way: as
# a `TransformerBridge`, which names every activation, in float32, in evaluation mode and without gradients (hence no
# `torch.no_grad()` here). The weights are simplified in ways that change no probability (lesson 04).

# %%
model = load_model(MODEL)
cfg = model.cfg
print(f"{MODEL}: {cfg.n_layers} layers of {cfg.n_heads} heads, residual stream of {cfg.d_model} numbers, "
      f"{cfg.d_vocab} tokens, context of {cfg.n_ctx} tokens")

# %% [markdown]
# ## 2 · Predictions
#
# A model reads tokens and gives *logits*: at every position, one number for each token that could come next. The
# softmax turns them into probabilities. `to_tokens` puts the beginning-of-sequence token (BOS) in front, as in
# training.

# %%
prompt = "One morning , Mary was in the"
tokens = model.to_tokens(prompt)                # [1, pos]
logits = model(tokens)                          # [1, pos, vocab]
print("tokens", tuple(tokens.shape), "→ logits", tuple(logits.shape))


# %%
@exercise("00.next_token_probs")
def next_token_probs(logits: Float[Tensor, "batch pos vocab"]) -> Float[Tensor, "batch vocab"]:
    """Probability of each token to come after the last position."""
    raise NotImplementedError


# %%
probs = next_token_probs(logits)
print(f"{probs.shape[1]} probabilities that sum to {probs.sum():.4f}; the largest is {probs.max():.4f}")

# %% [markdown]
# Now name the best guesses. Useful: `model.to_tokens(text)`, `tensor.topk(k)`, `model.tokenizer.decode([token_id])`.

# %%
@exercise("00.top_tokens")
def top_tokens(model: TransformerBridge, text: str, k: int = 5) -> list[tuple[str, float]]:
    """The k most likely next words after `text` (BOS in front), with their probabilities, best first."""
    raise NotImplementedError


# %%
for word, prob in top_tokens(model, prompt, k=5):
    print(f"{word!r:15} {prob:.4f}")
if MODEL == "tiny":
    print(f"the truth: one of {len(PLACES)} places, {1 / len(PLACES):.4f} each")

# %% [markdown]
# On `tiny` many places are about equally likely. That is not ignorance: the program that writes the stories draws
# this place at random.
#
# ## 3 · Looking inside
#
# `run_with_cache` runs the model and keeps activations by name. An attention pattern,
# `blocks.{layer}.attn.hook_pattern`, has for each head a row for every position that looks (the *query*) and a column
# for every position looked at (the *key*). Each row sums to 1, and nothing looks ahead.
#
# Every block has the same names. Each part reads a copy of the stream and adds to it:
#
# ```text
# hook_resid_pre                                           the stream [batch, pos, d_model] comes in
#   ├─ attn.hook_q, attn.hook_k ── attn.hook_pattern       who looks where [batch, head, query, key]
#   │  attn.hook_v ── attn.hook_z ── hook_attn_out ── +    z [batch, pos, head, d_head]: pattern times v
# hook_resid_mid
#   ├─ mlp.hook_pre ── mlp.hook_post ── hook_mlp_out ── +  [batch, pos, d_mlp] inside
# hook_resid_post                                          = hook_resid_pre of the next block
# ```
#
# To see all names of any model, run it once on a short text without a filter and print the cache's keys.

# %%
_, cache = model.run_with_cache(tokens)
first_block = [name for name in cache if name.startswith("blocks.0.")]
print(f"{len(cache)} names; {len(first_block)} in block 0, among them:")
for part in ("hook_resid_pre", "attn.hook_q", "attn.hook_pattern", "attn.hook_z", "hook_attn_out", "mlp.hook_post",
             "hook_resid_post"):
    print(f"    blocks.0.{part:20} {tuple(cache[f'blocks.0.{part}'].shape)}")
attention_bytes = 2 * 12 * 12 * 1024**2 * 4         # scores and pattern, 12 layers of 12 heads, float32
print(f"GPT-2 small, one text of 1024 tokens: {attention_bytes / 1e9:.1f} GB for attention alone")

# %% [markdown]
# Attention grows with the batch and with the *square* of the length. `names_filter` (a name, a list, or a function of
# the name) keeps only what you ask for. Make it a habit.

# %%
@exercise("00.head_pattern")
def head_pattern(
    model: TransformerBridge, tokens: Int[Tensor, "1 pos"], layer: int, head: int
) -> Float[Tensor, "query key"]:
    """The attention pattern of one head on one sequence."""
    raise NotImplementedError


# %%
words = [model.tokenizer.decode([token]) for token in tokens[0].tolist()]
plot_attention(head_pattern(model, tokens, layer=0, head=0), words, "head 0.0: layer 0, head 0")

# %% [markdown]
# All heads of the layer, in an interactive picture (run the cell): hover over a token to see what it looks at, click
# on a head to keep it.

# %%
patterns = [head_pattern(model, tokens, layer=0, head=head) for head in range(cfg.n_heads)]
attention_patterns(words, torch.stack(patterns))

# %% [markdown]
# ## 4 · Reaching inside
#
# To know whether a head matters, remove it. A *hook* is a function `f(activation, hook)`: TransformerLens calls it
# while the model runs, and continues with what it returns, or, if that is nothing, with the activation as it was.
# (`hook.name` says where you are, though some places have a second name; the argument must be there even if you ignore
# it.) `model.run_with_hooks(tokens, fwd_hooks=[(name, function)])` puts hooks in place for one run only. Here is one
# that only reads:

# %%
def show_norms(z, hook):                            # z: [batch, pos, head, d_head]
    norms = [f"{norm:.2f}" for norm in z[0, -1].norm(dim=-1)]
    print(f"{hook.name} at the last position, norm of each head's output: {', '.join(norms)}")


logits_again = model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_z", show_norms)])
print("the logits are as before:", torch.allclose(logits_again, logits))

# %% [markdown]
# Now one that changes what it reads. What each head writes, before it is mixed into the residual stream, is
# `blocks.{layer}.attn.hook_z`: which slice of it belongs to one head? (A hook that stays on silently changes every
# later run; the check looks for that, and for anything else left changed.)

# %%
@exercise("00.without_head")
def without_head(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], layer: int, head: int
) -> Float[Tensor, "batch pos vocab"]:
    """Logits of the model with one head's output set to zero."""
    raise NotImplementedError


# %% [markdown]
# **Predict before you run.** We silence each head of layer 0 in turn. What is the largest change in the probability
# of any next word after the prompt?

# %%
predict("00.largest_change", None, unit="(a change in probability)")

# %%
changes = [(next_token_probs(without_head(model, tokens, 0, head)) - probs).abs().max().item()
           for head in range(cfg.n_heads)]
for head, change in enumerate(changes):
    print(f"without head 0.{head}: largest change in a probability {change:.4f}")
reveal("00.largest_change", max(changes))
print(f"the likeliest word has {probs.max():.4f}: the largest change is {max(changes) / probs.max():.2f} of that")

# %% [markdown]
# Judge a change against what is there. And this is *one* prompt (§6 comes back to it).
#
# ## 5 · A known truth
#
# In natural text nobody knows the true probability of the next word. In the course's language we do: the program that
# writes the stories draws each word from a distribution that depends only on the words already on the page, and tells
# us that distribution.

# %%
language = StoryLanguage(seed=7)            # the stories that `tiny` was trained on had another seed
sample = language.sample(n=32, length=cfg.n_ctx if MODEL == "tiny" else 128)
STORY = 2
print(textwrap.fill(language.decode(sample.tokens[STORY, 1:60]) + " …", 80))

# %% [markdown]
# Names come back, a thing belongs to the one who picked it up, `he` is the person who acts, and `were` follows the
# *tigers*, not the nearer *kitten*. Compare, at one place in that story, the ten words that are likeliest to come next
# with what the model expects. (Many more are possible. Only `tiny` speaks this language, so this section always uses
# it.)

# %%
story_model = model if MODEL == "tiny" else load_model("tiny")
story_logits = story_model(sample.tokens.to(story_model.cfg.device)).cpu()
position = int((sample.entropy[STORY, :60] - 2.5).abs().argmin())      # where several words may come
plot_next_tokens(
    {"truth": sample.true_log_probs[STORY, position].exp(), "tiny": story_logits[STORY, position].softmax(-1)},
    language.vocabulary, title="… " + language.decode(sample.tokens[STORY, position - 7:position + 1]) + " …")

# %% [markdown]
# How far one distribution is from another is measured by the Kullback–Leibler divergence,
#
# $$\mathrm{KL}(p \,\|\, q) = \sum_y p(y)\,(\ln p(y) - \ln q(y)),$$
#
# summed over all tokens $y$, with $p$ the truth and $q$ the model, in *nats* (natural logarithm). It is never
# negative, and 0 only if the two agree. Where a word is impossible, $p = 0$ and $\ln p = -\infty$: its term is 0.

# %%
@exercise("00.kl_from_truth")
def kl_from_truth(
    true_log_probs: Float[Tensor, "batch pos vocab"], logits: Float[Tensor, "batch pos vocab"]
) -> Float[Tensor, "batch pos"]:
    """KL(truth ‖ model) in nats at each position: Σ p (ln p − ln q) over tokens, where p = 0 adds nothing."""
    raise NotImplementedError


# %% [markdown]
# **Predict:** no model can have a loss below the entropy of the truth. By how many nats per token is `tiny` above it,
# on unseen stories?

# %%
predict("00.kl", None, unit="nats per token")

# %%
kl = kl_from_truth(sample.true_log_probs, story_logits)             # [story, pos]
floor, excess = sample.entropy.mean().item(), kl.mean().item()
print(f"the truth's own entropy: {floor:.3f} nats per token; KL(truth ‖ tiny): {excess:.3f} nats per token")
reveal("00.kl", excess)
untrained = load_model("tiny", step=0)(sample.tokens.to(story_model.cfg.device)).cpu()
claim("training brought tiny near the truth: the same model before training is far from it", kl.mean(dim=1), "<",
      kl_from_truth(sample.true_log_probs, untrained).mean(dim=1), unit="nats")
measured("KL(truth ‖ tiny) on held-out stories", excess, unit="nats per token", at_most=0.10)     # for `make course`

# %%
plot_by_position({"entropy of the truth (the floor)": sample.entropy.mean(0),
                  "cross-entropy of tiny (floor + KL)": (sample.entropy + kl).mean(0)},
                 ylabel="nats per token, mean over 32 rows", title="How close to the floor?")

# %% [markdown]
# The two lines all but coincide, except at the right edge. Training rows were 128 tokens long, so the last position
# never had a next token as its target. How much of the KL above is that one position of 128?

# %%
print(f"KL at the last position {kl[:, -1].mean():.2f} nats, {kl[:, -1].sum() / kl.sum():.2f} of the whole; mean "
      f"without it {kl[:, :-1].mean():.3f}")
claim("the last position, for which training had no target, is worse than the others", kl[:, -1], ">",
      kl[:, :-1].mean(dim=1), unit="nats")

# %% [markdown]
# A plot by position shows at once what a mean hides. Measures in later lessons leave the last position out.
#
# ## 6 · Without a known truth
#
# Your own model has no known truth. The best substitute is the *unchanged model*: how far do the predictions move
# when a head is silenced? **Write the experiment.**

# %%
@exercise("00.damage")
def damage(model: TransformerBridge, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "layer head"]:
    """How far the predictions move without each head: nats, mean over all positions, the unchanged model as truth."""
    raise NotImplementedError


# %% [markdown]
# In stories we can check the substitute: does it say what the truth says? **Predict** the largest damage of
# the 16 heads (the prompt above moved by 0.006 at most).

# %%
predict("00.damage", None, unit="nats")

# %%
stories, truth = sample.tokens[:8].to(story_model.cfg.device), sample.true_log_probs[:8]
by_substitute = damage(story_model, stories)
by_truth = torch.tensor([[(kl_from_truth(truth, without_head(story_model, stories, layer, head).cpu()) - kl[:8]).mean()
                          for head in range(story_model.cfg.n_heads)] for layer in range(story_model.cfg.n_layers)])
for layer, (ours, true) in enumerate(zip(by_substitute, by_truth)):
    print(f"layer {layer}: KL to the unchanged model {[f'{x:.3f}' for x in ours]}, added KL to the truth "
          f"{[f'{x:.3f}' for x in true]}")
reveal("00.damage", by_substitute.max())
claim("head by head, the substitute misses the truth's answer by less than a hundredth of a nat (mean of 16 heads)",
      (by_substitute - by_truth).abs().flatten(), "<", 0.01, unit="nats")

# %%
changed = without_head(story_model, stories, 1, 3).cpu()[:, -1:]
print(f"head 1.3, last position: KL to the unchanged model "
      f"{estimate(kl_from_truth(story_logits[:8, -1:].log_softmax(-1), changed)[:, 0])}, added KL to the truth "
      f"{estimate((kl_from_truth(truth[:, -1:], changed) - kl[:8, -1:])[:, 0])} nats")

# %% [markdown]
# Head 0.0, which moved no probability by more than 0.006 after the prompt, costs over two nats a token in stories. If
# you predicted little, you generalised from one prompt, whose next word is drawn at random: there was hardly anything
# to lose. The substitute agrees on the heads that matter. For those that cost a hundredth of a nat it can be wrong by
# half.
#
# Three substitutes for the truth, and when each misleads:
#
# - **KL to the unchanged model** needs no labels and uses the whole distribution. But it is never negative: even a
#   change that repairs an error counts as damage. (Did head 1.3 repair one at the last position? Eight stories cannot
#   say: the last line's second interval contains 0.)
# - **The loss on the actual next token** can go down as well as up. But that token is one draw, so the loss is
#   noisier and asks only about the tokens that happened to follow.
# - **A logit difference** between a right and a wrong word asks one sharp question. It misses everything else: both
#   words may have become impossible.
#
# ## 7 · Does it hold in a real language model?
#
# Sections with this title repeat the lesson's main point on SmolLM2-135M, which others trained on real text
# (instruction-tuned, its weights rounded to 4 bits). `python -m course_utils fetch smollm2-135m` downloads it once.
# Without it, these cells say so and do nothing.

# %%
real_model = load_real_model()

# %%
if real_model is not None:
    print(f"{real_model.cfg.n_layers} layers of {real_model.cfg.n_heads} heads, {real_model.cfg.d_vocab} tokens")
    question = "The capital of France is"
    for word, prob in top_tokens(real_model, question, k=3):
        print(f"{word!r:12} {prob:.4f}")
    asked = real_model.to_tokens(question)
    unchanged = real_model(asked)[:, -1:].log_softmax(dim=-1)
    layer = 13                                      # one in the middle
    moved = [kl_from_truth(unchanged, without_head(real_model, asked, layer, head)[:, -1:]).item()
             for head in range(real_model.cfg.n_heads)]
    print(f"without one head of layer {layer}, KL to the unchanged model (nats): {[f'{x:.2f}' for x in moved]}")

# %% [markdown]
# (One prompt again: believe it no further than that.)
#
# ## On your own
#
# Which *MLP* of `tiny` matters more in stories, the first or the last? (`hook_mlp_out`.) Hand in a claim, two numbers
# with intervals, the control, what would have refuted you, and what it does not show.

# %% tags=["solution-only"]
def without_mlp(layer):
    return story_model.run_with_hooks(stories, fwd_hooks=[(f"blocks.{layer}.hook_mlp_out", lambda out, hook: out * 0)])


log_probs = story_logits[:8].log_softmax(dim=-1)
first, last = (kl_from_truth(log_probs, without_mlp(layer).cpu())[:, :-1].mean(dim=1) for layer in (0, 3))
claim("the first MLP of tiny matters more than the last", first, ">", last, unit="nats")

# %% [markdown] tags=["solution-only"]
# A model answer. Over 8 stories, silencing the first MLP moves the predictions further than silencing the last (the
# interval of the paired difference excludes 0). The last MLP is the control, and an interval around 0 would have
# refuted me. It does not show that the first "does more": everything after it was trained to read its output, and
# zero is an output that never occurs (lesson 03 has less brutal replacements).

# %% [markdown]
# ## What this does not show
#
# - Silencing a head says that the model *uses* it here, not what it does; a small change may mean that another head
#   stepped in (lesson 03).
# - An attention pattern says where a head looks, not what it carries away (lesson 04).
# - A small mean KL can hide a large one at a few positions.
#
# ## Summary
#
# - Logits at a position are about the *next* token; the softmax turns them into probabilities.
# - `run_with_cache(names_filter=…)` reads activations by name; `run_with_hooks(fwd_hooks=…)` changes them and cleans
#   up.
# - The course's language has a known truth: its entropy is the floor, KL(truth ‖ model) the height above it.
#   Elsewhere the unchanged model takes the truth's place.
# - One prompt is one prompt.
#
# Next: **01 · Repeated tokens**, which no bigram table can predict.

# %% tags=["exercise-only"]
progress("00")
