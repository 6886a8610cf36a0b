"""Answers for lesson 02."""

import numpy as np
import torch

from answers import Answers, Wrong

# --- 02.where_heads_look ----------------------------------------------------------------------------------------------


def looks_ahead(query, seq_len):
    return {"previous": query + 1, "duplicate": query + seq_len, "induction": query + seq_len - 1}


def bos_forgotten(query, seq_len):
    return {"previous": query - 1, "duplicate": query - seq_len - 1, "induction": query - seq_len}


def other_keys(query, seq_len):
    return {"prev": query - 1, "dup": query - seq_len, "ind": query - seq_len + 1}


def by_searching(query, seq_len):
    words = ["BOS", *range(seq_len), *range(seq_len)]
    first = words.index(words[query])
    return {"previous": query - 1, "duplicate": first, "induction": first + 1}


def from_offsets(query, seq_len):
    return {
        kind: query + offset
        for kind, offset in [("induction", 1 - seq_len), ("duplicate", -seq_len), ("previous", -1)]
    }


# --- the three scores: one text, with the line that matters left open -------------------------------------------------

CACHED = """
def f(model, tokens{argument}):
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_pattern"))
    scores = []
    for layer in range(model.cfg.n_layers):
        pattern = cache[f"blocks.{{layer}}.attn.hook_pattern"]
        scores.append({score})
    return torch.stack(scores)
"""


def cached(score, argument=""):
    return CACHED.format(score=score, argument=argument)


def with_length(score):
    return cached(score, ", seq_len")


PREVIOUS_LOOPS = """
def f(model, tokens):
    total = torch.zeros(model.cfg.n_layers, model.cfg.n_heads, dtype=torch.float64)
    def hook(pattern, hook):
        for q in range(1, tokens.shape[1]):
            total[hook.layer()] += pattern[:, :, q, q - 1].double().sum(0)
    model.run_with_hooks(tokens, return_type=None, fwd_hooks=[(lambda n: n.endswith("hook_pattern"), hook)])
    return total / tokens.shape[0] / (tokens.shape[1] - 1)
"""
PREVIOUS_EINOPS = cached(
    'einops.reduce(pattern[:, :, 1:, :-1].diagonal(dim1=-2, dim2=-1), "batch head pos -> head", "mean")'
)
PREVIOUS_HARD_CODED = """
def f(model, tokens):
    scores = torch.zeros(12, 12)
    _, cache = model.run_with_cache(tokens)
    for layer in range(model.cfg.n_layers):
        scores[layer, :model.cfg.n_heads] = cache["pattern", layer].diagonal(-1, -2, -1).mean((0, -1))
    return scores
"""
NO_HOOK_RUNS = """
def f(model, tokens):
    scores = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)
    def hook(pattern, hook):
        scores[hook.layer()] = pattern.diagonal(-1, -2, -1).mean((0, -1))
    model.run_with_hooks(tokens, fwd_hooks=[(lambda name: name == "hook_pattern", hook)])
    return scores
"""
HOOKS_LEFT = """
def f(model, tokens):
    scores = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)
    def hook(pattern, hook):
        scores[hook.layer()] = pattern.diagonal(-1, -2, -1).mean((0, -1))
    for layer in range(model.cfg.n_layers):
        model.add_hook(f"blocks.{layer}.attn.hook_pattern", hook)
    model(tokens)
    return scores
"""
INDUCTION_INDEXED = """
def f(model, tokens, seq_len):
    queries = torch.arange(seq_len + 1, 2 * seq_len + 1)
    scores = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)
    for layer in range(model.cfg.n_layers):
        name = f"blocks.{layer}.attn.hook_pattern"
        _, cache = model.run_with_cache(tokens, names_filter=name)
        scores[layer] = cache[name][:, :, queries, queries - seq_len + 1].mean(dim=(0, 2))
    return scores
"""
INDUCTION_MASKED = """
def f(model, tokens, seq_len):
    n = tokens.shape[1]
    mask = torch.zeros(n, n)
    for q in range(seq_len + 1, n):
        mask[q, q - seq_len + 1] = 1
    scores = {}
    def hook(pattern, hook):
        scores[hook.layer()] = torch.einsum("bhqk,qk->h", pattern, mask) / (seq_len * len(tokens))
    model.run_with_hooks(tokens, fwd_hooks=[(lambda n: "hook_pattern" in n, hook)])
    return torch.stack([scores[layer] for layer in sorted(scores)])
"""
DUPLICATE_LOOPS = """
def f(model, tokens, seq_len):
    _, cache = model.run_with_cache(tokens)
    rows = []
    for layer in range(model.cfg.n_layers):
        pattern = cache["pattern", layer]
        rows.append([sum(pattern[b, h, q, q - seq_len].item() for b in range(len(tokens))
                         for q in range(seq_len + 1, 2 * seq_len + 1)) / seq_len / len(tokens)
                     for h in range(model.cfg.n_heads)])
    return torch.tensor(rows)
"""

# --- 02.top_heads -----------------------------------------------------------------------------------------------------


def worst_first(scores, k=5):
    values, indices = scores.flatten().topk(k, largest=False)
    return [
        ((int(i) // scores.shape[1], int(i) % scores.shape[1]), float(v)) for v, i in zip(values, indices)
    ]


def flat_indices(scores, k=5):
    values, indices = scores.flatten().topk(k)
    return list(zip(indices.tolist(), values.tolist()))


def ascending(scores, k=5):
    return sorted(top_by_sorting(scores, k), key=lambda pair: pair[1])


def in_threes(scores, k=5):
    return [(layer, head, score) for (layer, head), score in top_by_sorting(scores, k)]


def one_after_the_other(scores, k=5):
    found = []
    for _ in range(k):
        best = divmod(int(scores.argmax()), scores.shape[1])
        found.append((best, scores[best].item()))
        scores[best] = -1.0
    return found


def best_of_each_layer(scores, k=5):
    return [((layer, int(row.argmax())), float(row.max())) for layer, row in enumerate(scores)][:k]


def top_by_sorting(scores, k=5):
    pairs = [
        ((layer, head), scores[layer, head].item())
        for layer in range(scores.shape[0])
        for head in range(scores.shape[1])
    ]
    return sorted(pairs, key=lambda pair: pair[1], reverse=True)[:k]


def top_by_numpy(scores, k=5):
    values = scores.numpy()
    order = np.argsort(-values, axis=None)[:k]
    return [((layer, head), values[layer, head]) for layer, head in zip(*np.unravel_index(order, values.shape))]


def k_without_default(scores, k):
    return top_by_sorting(scores, k)


def top_by_unravel(scores, k=5):
    order = scores.flatten().argsort(descending=True)[:k]
    layers, heads = torch.unravel_index(order, scores.shape)
    return [((int(layer), int(head)), float(scores[layer, head])) for layer, head in zip(layers, heads)]


# --- 02.induction_targets ---------------------------------------------------------------------------------------------


def word_before(tokens):
    result = torch.zeros(*tokens.shape, tokens.shape[1], dtype=torch.bool)
    for q in range(tokens.shape[1]):
        for k in range(min(q + 1, tokens.shape[1] - 1)):
            result[:, q, k] = tokens[:, k + 1] == tokens[:, q]
    return result


def only_the_last_match(tokens):
    result = torch.zeros(*tokens.shape, tokens.shape[1], dtype=torch.bool)
    for b, row in enumerate(tokens.tolist()):
        for q in range(len(row)):
            found = [k for k in range(1, q + 1) if row[k - 1] == row[q]]
            if found:
                result[b, q, found[-1]] = True
    return result


def keys_before_query_only(tokens):
    result = torch.zeros(*tokens.shape, tokens.shape[1], dtype=torch.bool)
    result[:, :, 1:] = tokens[:, :, None] == tokens[:, None, :-1]
    return result.tril(-1)


def targets_by_loops(tokens):
    batch, n = tokens.shape
    return torch.tensor(
        [
            [[0 < k <= q and bool(tokens[b, k - 1] == tokens[b, q]) for k in range(n)] for q in range(n)]
            for b in range(batch)
        ]
    )


def targets_by_one_hot(tokens):
    hot = torch.nn.functional.one_hot(tokens, int(tokens.max()) + 1).float()
    match = torch.einsum("bqv,bkv->bqk", hot, torch.nn.functional.pad(hot, (0, 0, 1, 0))[:, :-1])
    return (match > 0.5) & torch.ones_like(match, dtype=torch.bool).tril()


# --- 02.formation_step ------------------------------------------------------------------------------------------------


def last_that_reaches(steps, scores, threshold=0.5):
    found = None
    for step, score in zip(steps, scores.tolist()):
        if score >= threshold:
            found = step
    return found


def strictly_above(steps, scores, threshold=0.5):
    return next(step for step, score in zip(steps, scores.tolist()) if score > threshold)


def last_crossing(steps, scores, threshold=0.5):
    below = [i for i, score in enumerate(scores.tolist()) if score < threshold]
    return steps[below[-1] + 1]


def first_of_all(steps, scores, threshold=0.5):
    return next(step for step, score in zip(steps, scores.tolist()) if score >= threshold)


def first_by_argmax(steps, scores, threshold=0.5):
    """argmax of "has reached" is 0 where nothing has."""
    return steps[int((scores >= threshold).int().argmax())]


def formation_by_loop(steps, scores, threshold=0.5):
    for step, score in zip(steps, scores.tolist()):
        if score >= threshold:
            return step
    return None


def formation_by_tensor(steps, scores, threshold=0.5):
    reached = (scores >= threshold).nonzero().flatten().tolist()
    return steps[reached[0]] if reached else None


ANSWERS = {
    "02.where_heads_look": Answers(
        reject=[
            Wrong(looks_ahead, says="cannot look ahead"),
            Wrong(bos_forgotten),
            Wrong(other_keys),
        ],
        accept=[by_searching, from_offsets],
    ),
    "02.previous_token_scores": Answers(
        reject=[
            Wrong(cached("pattern.diagonal(1, -2, -1).mean((0, -1))"), says="looks ahead"),
            Wrong(cached("pattern[0].diagonal(-1, -2, -1).mean(-1)"), says="only the first row"),
            Wrong(cached("pattern.diagonal(-1, -2, -1).mean()"), says="the head axis is gone"),
            Wrong(cached("pattern.diagonal(-1, -2, -1).sum(-1).mean(0) / pattern.shape[-1]")),
            Wrong(NO_HOOK_RUNS, says="or no hook ran"),
            Wrong(PREVIOUS_HARD_CODED),
            Wrong(HOOKS_LEFT, says="leaves a hook"),
        ],
        accept=[PREVIOUS_LOOPS, PREVIOUS_EINOPS, cached("pattern.diagonal(-1, -2, -1).mean(-1).mean(0)")],
    ),
    "02.induction_scores": Answers(
        reject=[
            Wrong(with_length("pattern.diagonal(seq_len - 1, -2, -1).mean((0, -1))"), says="looks ahead"),
            Wrong(with_length("pattern[0].diagonal(1 - seq_len, -2, -1)[..., 2:].mean(-1)"), says="only the first row"),
            Wrong(with_length("pattern.diagonal(1 - seq_len, -2, -1)[..., 2:].mean()"), says="the head axis is gone"),
            Wrong(with_length("pattern.diagonal(1 - seq_len, -2, -1)[..., 3:].mean((0, -1))")),
            Wrong(with_length("pattern.diagonal(1 - seq_len, -2, -1)[..., 2:].amax((0, -1))")),
        ],
        accept=[
            INDUCTION_INDEXED,
            INDUCTION_MASKED,
            with_length("pattern[:, :, seq_len + 1:, 2:].diagonal(0, -2, -1)[..., :seq_len].mean((0, -1))"),
        ],
    ),
    "02.duplicate_token_scores": Answers(
        reject=[
            Wrong(with_length("pattern.diagonal(-seq_len, -2, -1)[..., 1:].mean()"), says="the head axis is gone"),
            Wrong(with_length("pattern.diagonal(0, -2, -1)[..., -seq_len:].mean((0, -1))")),
            Wrong(with_length("pattern.diagonal(-seq_len - 1, -2, -1).mean((0, -1))")),
        ],
        accept=[
            DUPLICATE_LOOPS,
            with_length("pattern[:, :, seq_len + 1:, 1:seq_len + 1].diagonal(0, -2, -1).mean((0, -1))"),
        ],
    ),
    "02.top_heads": Answers(
        reject=[
            Wrong(worst_first, says="the worst heads"),
            Wrong(flat_indices, says="flattened scores"),
            Wrong(best_of_each_layer),
            Wrong(k_without_default),
            Wrong(ascending, says="the worst heads"),
            Wrong(in_threes, says="3 items; 2 were expected"),
            Wrong(one_after_the_other, says="it changes its input"),
        ],
        accept=[top_by_sorting, top_by_unravel, top_by_numpy],
    ),
    "02.induction_targets": Answers(
        reject=[
            Wrong(lambda tokens: targets_by_loops(tokens).float(), says="a bool dtype was expected"),
            Wrong(word_before, says="before the earlier occurrence"),
            Wrong(only_the_last_match),
            Wrong(keys_before_query_only),
        ],
        accept=[targets_by_loops, targets_by_one_hot],
    ),
    "02.formation_step": Answers(
        reject=[
            Wrong(last_that_reaches, says="the last step that reaches"),
            Wrong(strictly_above),
            Wrong(last_crossing),
            Wrong(first_of_all, says="return None"),
            Wrong(first_by_argmax, says="return None"),
        ],
        accept=[formation_by_loop, formation_by_tensor],
    ),
}
