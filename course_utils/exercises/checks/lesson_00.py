"""Exercises of lesson 00: logits, the cache, hooks, and the distance to a known truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from course_utils.exercises.checking import Case, Exercise, compare_cases
from course_utils.exercises.checks.shared import (
    planted_model,
    random_logits,
    random_model,
    random_tokens,
    repeated_distinct,
    spaced_model,
)
from course_utils.exercises.mistakes import seen, variants
from course_utils.metrics import kl_divergence

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


# --- the course's answers ------------------------------------------------------------------------------------------


def next_token_probs(logits: Float[Tensor, "batch pos vocab"]) -> Float[Tensor, "batch vocab"]:
    """Probability of each token to come after the last position."""
    return logits[:, -1].softmax(dim=-1)


def top_tokens(model: TransformerBridge, text: str, k: int = 5) -> list[tuple[str, float]]:
    """The k most likely next words after `text` (BOS in front), with their probabilities, best first."""
    probs = model(model.to_tokens(text))[0, -1].softmax(dim=-1)  # [vocab]
    best = probs.topk(k)
    words = [model.tokenizer.decode([index]) for index in best.indices.tolist()]
    return list(zip(words, best.values.tolist()))


def head_pattern(
    model: TransformerBridge, tokens: Int[Tensor, "1 pos"], layer: int, head: int
) -> Float[Tensor, "query key"]:
    """The attention pattern of one head on one sequence."""
    name = f"blocks.{layer}.attn.hook_pattern"
    _, cache = model.run_with_cache(tokens, names_filter=name)
    return cache[name][0, head]  # [batch, head, query, key] -> [query, key]


def without_head(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], layer: int, head: int
) -> Float[Tensor, "batch pos vocab"]:
    """Logits of the model with one head's output set to zero."""

    def silence(z, hook):
        z[:, :, head] = 0.0  # [batch, pos, head, d_head]
        return z

    return model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", silence)])


def kl_from_truth(
    true_log_probs: Float[Tensor, "batch pos vocab"], logits: Float[Tensor, "batch pos vocab"]
) -> Float[Tensor, "batch pos"]:
    """KL(truth ‖ model) in nats at each position: Σ p (ln p − ln q) over tokens, where p = 0 adds nothing."""
    log_q = logits.log_softmax(dim=-1)
    terms = true_log_probs.exp() * (true_log_probs - log_q)  # 0 * inf is NaN where p = 0 …
    terms = torch.where(true_log_probs.isfinite(), terms, 0.0)  # … so those terms are replaced by 0
    return terms.sum(dim=-1)


def damage(model: TransformerBridge, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "layer head"]:
    """How far the predictions move without each head: nats, mean over all positions, the unchanged model as truth."""
    before = model(tokens).log_softmax(dim=-1)
    return torch.tensor([[kl_from_truth(before, without_head(model, tokens, layer, head)).mean().item()
                          for head in range(model.cfg.n_heads)] for layer in range(model.cfg.n_layers)])


# --- inputs --------------------------------------------------------------------------------------------------------


def logits_cases() -> list[Case]:
    return [
        Case(random_logits(2, 4, 7), label="2 sequences, 4 positions, 7 tokens"),
        Case(random_logits(1, 6, 5, seed=1), label="1 sequence"),
    ]


def text_cases() -> list[Case]:
    model = random_model()
    return [
        Case(model, "w1 w2 w3", k=3, label="three words"),
        Case(model, "w9 w9 w8 w1 w30", k=4, label="five words"),
        Case(model, "w7 w2", label="k left out"),
        Case(spaced_model(), "ba do fe", k=3, label="a model whose words begin with a space"),
    ]


def head_cases() -> list[Case]:
    model = random_model()
    return [
        Case(model, random_tokens(1, 6), 2, 0, label="head 2.0"),
        Case(model, random_tokens(1, 9, seed=1), 1, 1, label="head 1.1"),
    ]


def silence_cases() -> list[Case]:
    model = random_model()
    return [
        Case(model, random_tokens(2, 6), 0, 1, label="head 0.1"),
        Case(model, random_tokens(1, 5, seed=1), 2, 0, label="head 2.0"),
    ]


def damage_cases() -> list[Case]:
    return [
        Case(random_model(), random_tokens(3, 6), label="a random model"),
        Case(planted_model(), repeated_distinct(2, 5), label="the planted model: heads 0.1 and 1.1 do nothing"),
    ]


def truth_cases() -> list[Case]:
    truth = random_logits(2, 3, 6, seed=2)
    truth[..., :2] = -torch.inf  # two tokens that cannot come
    return [
        Case(truth.log_softmax(-1), random_logits(2, 3, 6, seed=3), label="two impossible tokens"),
        Case(
            random_logits(1, 4, 5, seed=4).log_softmax(-1),
            random_logits(1, 4, 5, seed=5),
            label="every token possible",
        ),
    ]


# --- known mistakes ------------------------------------------------------------------------------------------------

PROBS_MISTAKES = variants(next_token_probs, {
    "these are log-probabilities: the exercise asks for probabilities, which sum to 1": {"softmax": "log_softmax"},
    "this is the first position; what comes next is predicted at the last one": {"[:, -1]": "[:, 0]"},
    "the softmax runs over the sequences of the batch, not over the vocabulary (dim=-1)": {"dim=-1": "dim=0"},
    "every position is returned: pick the last one": seen(lambda got, expected: got.ndim == 3),
    "these are the raw logits: they are not probabilities until the softmax": "logits[:, -1]",
    "the softmax was taken twice: what it returns are probabilities already": "logits[:, -1].softmax(-1).softmax(-1)",
})

TOP_MISTAKES = variants(top_tokens, {
    "BOS is missing: the model was trained with it in front of every text":
        {"to_tokens(text)": "to_tokens(text, prepend_bos=False)"},
    "the second items are not probabilities, which lie between 0 and 1: take the softmax of the logits":
        seen(lambda got, expected: isinstance(got, list) and not all(0 <= float(p) <= 1 for _, p in got)),
    "the softmax runs over the k best only: it must run over the whole vocabulary, before topk":
        {"[0, -1].softmax(dim=-1)": "[0, -1]", "best.values.tolist()": "best.values.softmax(dim=-1).tolist()"},
    "these are the vocabulary's own spellings (`Ġba`): `model.tokenizer.decode([id])` gives the word as it is read":
        {"model.tokenizer.decode([index])": "model.tokenizer.convert_ids_to_tokens(index)"},
    "k must default to 5": {"k: int = 5": "k: int = 3"},
    "token ids were returned; `model.tokenizer.decode([id])` gives the word":
        seen(lambda got, expected: isinstance(got, list) and isinstance(got[0][0], int)),
    "the pairs are reversed: each is (word, probability)":
        seen(lambda got, expected: isinstance(got[0][0], float) and isinstance(got[0][1], str)),
    "the least likely comes first: sort from high to low": seen(lambda got, expected: got[0][1] < got[-1][1]),
})

PATTERN_MISTAKES = variants(head_pattern, {
    "rows and columns are swapped: the query comes first, and each row sums to 1": "cache[name][0, head].T",
    "these are attention scores, before the softmax: use hook_pattern": {"hook_pattern": "hook_attn_scores"},
    "the batch axis is still there: there is one sequence, take [0]":
        seen(lambda got, expected: got.shape == (1, *expected.shape)),
    "all heads of the layer were averaged": "cache[name][0].mean(dim=0)",
})

SILENCE_MISTAKES = variants(without_head, {
    "all heads of the layer are silenced: only one should be": {"[:, :, head]": "[:]"},
    "a position was zeroed, not a head: z is [batch, pos, head, d_head]": {"[:, :, head]": "[:, head]"},
    "a component of every head was zeroed: z is [batch, pos, head, d_head], and the head is the third axis":
        {"[:, :, head]": "[..., head]"},
    "only the last position was silenced: the head writes at every one": {"[:, :, head]": "[:, -1, head]"},
    "the hook is in layer 0, whatever `layer` is": {"blocks.{layer}": "blocks.0"},
    "replaced by its mean: the exercise asks for zero": ({"= 0.0": "= z[:, :, head].mean(dim=(0, 1))"},
                                                         {"= 0.0": "= z[:, :, head].mean(dim=1, keepdim=True)"},
                                                         {"= 0.0": "= z[:, :, head].mean()"}),
    "nothing changed: does the hook return z, and is it passed in fwd_hooks?": "model(tokens)",
})

KL_MISTAKES = variants(kl_from_truth, {
    "this is KL(model ‖ truth): the weights must be the truth's probabilities": (
        "(log_q.exp() * (log_q - true_log_probs)).sum(dim=-1)",
        "(log_q.exp() * (log_q - true_log_probs)).nan_to_num(posinf=0.0).sum(dim=-1)"),
    "this is the cross-entropy −Σ p ln q: subtract the entropy of the truth":
        "-(true_log_probs.exp() * log_q).sum(dim=-1)",
    "NaN: where p = 0 the product 0 * inf is not 0; replace those terms (torch.where)":
        seen(lambda got, expected: got.isnan().any()),
    "the sign is flipped: a KL is never negative": "-terms.sum(dim=-1)",
    "the terms are averaged over the vocabulary: a KL sums them": "terms.mean(dim=-1)",
    "ln p = −∞ was replaced before the exponential: p = 0 has become p = 1":
        "known = torch.where(true_log_probs.isfinite(), true_log_probs, 0.0)\n"
        "return (known.exp() * (known - log_q)).sum(dim=-1)",
    "NaN was replaced after the sum: one impossible token has made the whole sum NaN; replace its term":
        "(true_log_probs.exp() * (true_log_probs - log_q)).sum(dim=-1).nan_to_num()",
    "ln q is missing its normalisation: it is `logits.log_softmax(-1)`, not the logits": {
        "logits.log_softmax(dim=-1)": "logits"},
    "this is in bits (log base 2): nats use the natural logarithm": "terms.sum(dim=-1) / math.log(2)",
})

DAMAGE_MISTAKES = variants(damage, {
    "this is KL(without the head ‖ unchanged): the weights must be the unchanged model's probabilities": {
        "before = model(tokens).log_softmax(dim=-1)": "before = model(tokens)",
        "kl_from_truth(before, without_head(model, tokens, layer, head))":
            "kl_from_truth(without_head(model, tokens, layer, head).log_softmax(-1), before)"},
    "only the last position counts here: average over all": {".mean().item()": "[:, -1].mean().item()"},
    "only the first sequence counts here: average over all": {".mean().item()": "[0].mean().item()"},
    "summed over positions: take the mean": {".mean().item()": ".sum(dim=1).mean().item()"},
    "summed over everything: take the mean": {".mean().item()": ".sum().item()"},
    "heads and layers are swapped: the result is [layer, head]":
        seen(lambda got, expected: (got.T - expected).abs().max() < 1e-3),
    "nothing changes when a head is silenced: are both runs compared, the one without the head and the one with it?":
        seen(lambda got, expected: (got.abs() < 1e-6).all()),
})


EXERCISES = [
    Exercise(
        id="00.next_token_probs",
        title="From logits to probabilities",
        reference=next_token_probs,
        check=compare_cases(logits_cases, PROBS_MISTAKES, keeps_inputs=True),
        hints=(
            "Logits have the shape [batch, pos, vocab]. Which position predicts what comes next?",
            "The last position, index -1. Probabilities over which axis should sum to 1?",
            "`logits[:, -1].softmax(dim=-1)`",
        ),
        minutes=3,
        difficulty=1,
    ),
    Exercise(
        id="00.top_tokens",
        title="The model's best guesses",
        reference=top_tokens,
        check=compare_cases(text_cases, TOP_MISTAKES, keeps_inputs=True),
        hints=(
            "`model.to_tokens(text)` gives [1, pos] ids with BOS in front; `model(tokens)` gives logits.",
            "`probs.topk(k)` has `.values` and `.indices`; `model.tokenizer.decode([id])` makes a word of an id.",
            "Take `model(model.to_tokens(text))[0, -1].softmax(-1).topk(k)`, then build the list of pairs.",
        ),
        minutes=6,
        difficulty=1,
    ),
    Exercise(
        id="00.head_pattern",
        title="What one head looks at",
        reference=head_pattern,
        check=compare_cases(head_cases, PATTERN_MISTAKES, keeps_inputs=True),
        hints=(
            "Every activation has a name. Attention patterns are `blocks.{layer}.attn.hook_pattern`.",
            "`_, cache = model.run_with_cache(tokens, names_filter=name)` keeps only that one.",
            "`cache[name]` is [batch, head, query, key]: return `cache[name][0, head]`.",
        ),
        minutes=6,
        difficulty=1,
    ),
    Exercise(
        id="00.without_head",
        title="Silence one head",
        reference=without_head,
        check=compare_cases(silence_cases, SILENCE_MISTAKES, atol=1e-4, keeps_inputs=True),
        hints=(
            "A hook is a function (activation, hook) that returns what the model is to continue with.",
            "The output of each head is `blocks.{layer}.attn.hook_z`, of shape [batch, pos, head, d_head].",
            "In the hook: `z[:, :, head] = 0.0; return z`. Then "
            "`model.run_with_hooks(tokens, fwd_hooks=[(name, hook)])`.",
        ),
        minutes=8,
        difficulty=2,
    ),
    Exercise(
        id="00.kl_from_truth",
        title="How far from the truth?",
        reference=kl_from_truth,
        check=compare_cases(truth_cases, KL_MISTAKES, keeps_inputs=True),
        hints=(
            "KL(p ‖ q) = Σ p (ln p − ln q), summed over the vocabulary. Which of the two is p here?",
            "`true_log_probs` is ln p already; ln q is `logits.log_softmax(-1)`. What is 0 * inf?",
            "Compute the terms, put 0 where `true_log_probs` is not finite (`torch.where`), sum over the last axis.",
        ),
        minutes=8,
        difficulty=2,
    ),
    Exercise(
        id="00.damage",
        title="How much does each head matter?",
        reference=damage,
        check=compare_cases(damage_cases, DAMAGE_MISTAKES, atol=1e-4, rtol=1e-3, keeps_inputs=True),
        hints=(
            "You have both parts: `without_head` gives logits, `kl_from_truth` compares logits with log-probabilities.",
            "In the truth's place stand the unchanged model's log-probabilities, `model(tokens).log_softmax(-1)`. "
            "Compute them once; then go through layers and heads.",
            "`kl_from_truth(before, without_head(model, tokens, layer, head)).mean()` for every layer and head, as a "
            "tensor [model.cfg.n_layers, model.cfg.n_heads].",
        ),
        minutes=8,
        difficulty=2,
    ),
]

IN_THE_PACKAGE = {"00.kl_from_truth": kl_divergence}
