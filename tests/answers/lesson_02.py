"""Answers for lesson 02."""

import torch

from answers import Answers, Wrong

# --- 02.where_heads_look ----------------------------------------------------------------------------------------------


def looks_ahead(query, seq_len):
    return {"previous": query + 1, "duplicate": query + seq_len, "induction": query + seq_len - 1}


def bos_forgotten(query, seq_len):
    return {"previous": query - 1, "duplicate": query - seq_len - 1, "induction": query - seq_len}


def by_searching(query, seq_len):
    words = ["BOS", *range(seq_len), *range(seq_len)]
    first = words.index(words[query])
    return {"previous": query - 1, "duplicate": first, "induction": first + 1}


def from_offsets(query, seq_len):
    return {
        kind: query + offset
        for kind, offset in [("induction", 1 - seq_len), ("duplicate", -seq_len), ("previous", -1)]
    }


# --- 02.head_scores ---------------------------------------------------------------------------------------------------

FROM_THE_CACHE = """
def f(model, tokens, entries):
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_pattern"))
    return torch.stack([{score} for layer in range(model.cfg.n_layers)])
"""


def cached(score):
    return FROM_THE_CACHE.format(score=score.replace("PATTERN", 'cache[f"blocks.{layer}.attn.hook_pattern"]'))


ROW_BY_ROW = """
def f(model, tokens, entries):
    total = torch.zeros(model.cfg.n_layers, model.cfg.n_heads, dtype=torch.float64)
    def add(pattern, hook):
        total[hook.layer()] += einops.reduce(entries(pattern).double(), "batch head entry -> head", "mean")
    for row in tokens:
        model.run_with_hooks(row[None], return_type=None, fwd_hooks=[(lambda n: n.endswith("attn.hook_pattern"), add)])
    return total / len(tokens)
"""
ONE_HOOK_A_LAYER = """
def f(model, tokens, entries):
    rows = {}
    def keep(layer):
        def hook_function(pattern, hook):
            rows[layer] = entries(pattern).flatten(2).mean(-1).mean(0)
        return hook_function
    with model.hooks(fwd_hooks=[(f"blocks.{i}.attn.hook_pattern", keep(i)) for i in range(model.cfg.n_layers)]):
        model(tokens)
    return torch.stack([rows[i] for i in sorted(rows)])
"""
HARD_CODED = """
def f(model, tokens, entries):
    scores = torch.zeros(12, 12)
    _, cache = model.run_with_cache(tokens)
    for layer in range(model.cfg.n_layers):
        scores[layer, :model.cfg.n_heads] = entries(cache["pattern", layer]).mean((0, -1))
    return scores
"""
NO_HOOK_RUNS = """
def f(model, tokens, entries):
    scores = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)
    def hook(pattern, hook):
        scores[hook.layer()] = entries(pattern).mean((0, -1))
    model.run_with_hooks(tokens, fwd_hooks=[(lambda name: name == "hook_pattern", hook)])
    return scores
"""
HOOKS_LEFT = """
def f(model, tokens, entries):
    scores = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)
    def hook(pattern, hook):
        scores[hook.layer()] = entries(pattern).mean((0, -1))
    for layer in range(model.cfg.n_layers):
        model.add_hook(f"blocks.{layer}.attn.hook_pattern", hook)
    model(tokens)
    return scores
"""
MEAN_OF_CHUNKS = """
def f(model, tokens, entries):
    chunks = []
    for rows in tokens.split({n_rows}):
        _, cache = model.run_with_cache(rows)
        chunks.append(torch.stack([entries(cache["pattern", i]).mean((0, -1)) for i in range(model.cfg.n_layers)]))
    return torch.stack(chunks).mean(0)
"""
EIGHT_ROWS = cached("entries(PATTERN)[:8].mean((0, -1))")
PATTERN_RETURNED = """
def f(model, tokens, entries):
    scores = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)
    def hook(pattern, hook):
        scores[hook.layer()] = entries(pattern).mean((0, -1))
        return pattern * 0
    model.run_with_hooks(tokens, fwd_hooks=[(lambda name: name.endswith("hook_pattern"), hook)])
    return scores
"""

# --- 02.stripe --------------------------------------------------------------------------------------------------------


def by_indexing(pattern, kind, seq_len):
    first = 1 if kind == "previous" else seq_len + 1
    queries = torch.arange(first, pattern.shape[-1])
    back = {"previous": 1, "duplicate": seq_len, "induction": seq_len - 1}[kind]
    return pattern[:, :, queries, queries - back]


def entry_by_entry(pattern, kind, seq_len):
    queries = range(1 if kind == "previous" else seq_len + 1, 2 * seq_len + 1)
    keys = {"previous": lambda q: q - 1, "duplicate": lambda q: q - seq_len, "induction": lambda q: q - seq_len + 1}
    return torch.stack([pattern[..., q, keys[kind](q)] for q in queries], dim=-1)


def third_dropped(pattern, kind, seq_len):
    return by_indexing(pattern, kind, seq_len)[..., kind == "induction":]


# --- 02.uniform_score -------------------------------------------------------------------------------------------------


def uniform_by_loops(targets):
    shares = [row[q].sum().item() / (q + 1) for row in targets for q in range(targets.shape[1]) if row[q].any()]
    return sum(shares) / len(shares)


def with_a_uniform_pattern(targets):
    n = targets.shape[-1]
    pattern = torch.ones(n, n).tril()
    pattern = pattern / pattern.sum(-1, keepdim=True)
    on_targets = (pattern * targets).sum(-1)
    return float(on_targets[targets.any(-1)].mean())


def a_tensor(targets):
    return torch.tensor(uniform_by_loops(targets))


def share_of_the_square(targets):
    return targets.float().mean().item()


# --- 02.induction_targets ---------------------------------------------------------------------------------------------


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


ANSWERS = {
    "02.where_heads_look": Answers(
        reject=[Wrong(looks_ahead, says="cannot look ahead"), Wrong(bos_forgotten)],
        accept=[by_searching, from_offsets],
    ),
    "02.head_scores": Answers(
        reject=[
            Wrong(cached("entries(PATTERN)[0].mean(-1)"), says="only the first row"),
            Wrong(cached("entries(PATTERN).mean()"), says="the head axis is gone"),
            Wrong(NO_HOOK_RUNS, says="no hook ran"),
            Wrong(HARD_CODED),
            Wrong(HOOKS_LEFT, says="leaves a hook"),
            *(Wrong(MEAN_OF_CHUNKS.format(n_rows=n)) for n in (3, 8, 16, 64)),      # the last chunk counts too much
            Wrong(EIGHT_ROWS),
            Wrong(PATTERN_RETURNED),
        ],
        accept=[cached("entries(PATTERN).mean((0, -1))"), ROW_BY_ROW, ONE_HOOK_A_LAYER],
    ),
    "02.stripe": Answers(
        reject=[
            Wrong(third_dropped),
            Wrong(lambda pattern, kind, seq_len: by_indexing(pattern * 0, kind, seq_len), says="look ahead"),
        ],
        accept=[by_indexing, entry_by_entry],
    ),
    "02.uniform_score": Answers(
        reject=[Wrong(a_tensor, says="`.item()`"), Wrong(share_of_the_square)],
        accept=[uniform_by_loops, with_a_uniform_pattern],
    ),
    "02.induction_targets": Answers(
        reject=[Wrong(keys_before_query_only, says="its own target")],
        accept=[targets_by_loops, targets_by_one_hot],
    ),
}
