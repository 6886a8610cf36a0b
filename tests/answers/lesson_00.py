"""Answers for lesson 00."""

import torch

from answers import Answers, Wrong

# --- 00.next_token_probs -------------------------------------------------------------------------------------------


def all_positions(logits):
    return logits.softmax(dim=2)


def unnormalised(logits):
    return logits[:, -1].exp()


def by_hand(logits):
    last = logits[:, -1].double()
    powers = (last - last.max(dim=-1, keepdim=True).values).exp()
    return powers / powers.sum(-1, keepdim=True)


def row_by_row(logits):
    return torch.stack([torch.nn.functional.softmax(sequence[-1], dim=0) for sequence in logits])


# --- 00.top_tokens -------------------------------------------------------------------------------------------------

TOP = """
def f(model, text, k=5):
    values, indices = model(model.to_tokens(text))[0, -1].{values}.topk({k})
    words = [model.tokenizer.decode([i]) for i in indices.tolist()]
    return {result}
"""


def top(result="list(zip(words, values.tolist()))", values="softmax(-1)", k="k"):
    return TOP.format(result=result, values=values, k=k)


BY_SORTING = """
def f(model, text, k=5):
    p = torch.nn.functional.softmax(model(model.to_tokens(text))[:, -1], dim=-1).squeeze(0)
    order = p.argsort(descending=True)[:k]
    return [(model.tokenizer.decode(int(i)), float(p[i])) for i in order]
"""
PLAIN_PYTHON = """
def f(model, text, k=5):
    ids = [model.tokenizer.bos_token_id] + model.tokenizer.encode(text, add_special_tokens=False)
    p = model(torch.tensor([ids]))[0][-1].double().softmax(0).tolist()
    best = sorted(range(len(p)), key=lambda i: -p[i])[:k]
    return [(model.tokenizer.decode([i]), p[i]) for i in best]
"""

# --- 00.head_pattern -----------------------------------------------------------------------------------------------

CACHED = """
def f(model, tokens, layer, head):
    name = f"blocks.{{layer}}.attn.hook_pattern"
    _, cache = model.run_with_cache(tokens, names_filter=name)
    return cache[name]{take}
"""
HOOKED_PATTERN = """
def f(model, tokens, layer, head):
    kept = []
    def keep(pattern, hook):
        kept.append(pattern[0, head].clone())
    model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{layer}.attn.hook_pattern", keep)])
    return kept[0]
"""
WHOLE_CACHE = """
def f(model, tokens, layer, head):
    _, cache = model.run_with_cache(tokens)
    return cache["pattern", layer][0, head]
"""

# --- 00.without_head -----------------------------------------------------------------------------------------------

WEIGHTS_ZEROED = """
def f(model, tokens, layer, head):
    with torch.no_grad():
        model.blocks[layer].attn.W_O[head] = 0.0
    return model(tokens)
"""
WEIGHTS_PUT_BACK = """
def f(model, tokens, layer, head):
    with torch.no_grad():
        W = model.blocks[layer].attn.W_O
        saved = W[head].clone()
        W[head] = 0.0
        logits = model(tokens)
        W[head] = saved
    return logits
"""
LEFT_ON = """
def f(model, tokens, layer, head):
    def silence(z, hook):
        z[:, :, head] = 0
        return z
    model.add_hook(f"blocks.{layer}.attn.hook_z", silence)
    return model(tokens)
"""
WITH_MASK = """
def f(model, tokens, layer, head):
    keep = torch.ones(model.cfg.n_heads)
    keep[head] = 0
    scale = lambda z, hook: z * keep[None, None, :, None]
    return model.run_with_hooks(tokens, fwd_hooks=[(lambda n: n == f"blocks.{layer}.attn.hook_z", scale)])
"""

# --- 00.kl_from_truth ----------------------------------------------------------------------------------------------


def truth_changed(true_log_probs, logits):
    true_log_probs[true_log_probs == -torch.inf] = -1e9
    return with_nan(true_log_probs, logits)


def with_nan(true_log_probs, logits):
    p = true_log_probs.exp()
    return (p * (true_log_probs - logits.log_softmax(-1))).sum(-1)


def with_xlogy(true_log_probs, logits):
    p = true_log_probs.double().exp()
    return (torch.xlogy(p, p) - p * logits.double().log_softmax(-1)).sum(-1)


def with_distributions(true_log_probs, logits):
    truth, model = (torch.distributions.Categorical(logits=x) for x in (true_log_probs, logits))
    return torch.distributions.kl_divergence(truth, model)


# --- 00.damage ------------------------------------------------------------------------------------------------------

DAMAGE = """
def f(model, tokens):
    import math
    def kl(p, q):
        return (p.exp() * (p - q)).sum(-1)
    result = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)
    before = model(tokens).log_softmax(-1)
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            def silence(z, hook):
                z = z.clone()
                z[:, :, {head}] = 0
                return z
            hooks = [(f"blocks.{{layer}}.attn.hook_z", silence)]
            after = model.run_with_hooks(tokens, fwd_hooks=hooks).log_softmax(-1)
            result[layer, head] = {number}
    return {result}
"""


def damaged(number="kl(before, after).mean()", head="head", result="result"):
    return DAMAGE.format(number=number, head=head, result=result)


WITH_BATCHMEAN = damaged('torch.nn.functional.kl_div(after.flatten(0, 1), before.flatten(0, 1), '
                         'log_target=True, reduction="batchmean")')
HOOKS_PILE_UP = """
def f(model, tokens):
    result = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)
    before = model(tokens).log_softmax(-1)
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            others = (torch.arange(model.cfg.n_heads) != head)[:, None]
            model.add_hook(f"blocks.{layer}.attn.hook_z", lambda z, hook: z * others)
            after = model(tokens).log_softmax(-1)
            result[layer, head] = (before.exp() * (before - after)).sum(-1).mean()
    return result
"""

ANSWERS = {
    "00.next_token_probs": Answers(
        reject=[Wrong(all_positions, says="every position"), Wrong(unnormalised)],
        accept=[by_hand, row_by_row],
    ),
    "00.top_tokens": Answers(
        reject=[
            Wrong(top(values="float()"), says="take the softmax"),
            Wrong(top("list(zip(indices.tolist(), values.tolist()))"), says="token ids were returned"),
            Wrong(top("list(zip(words, values.tolist()))[::-1]"), says="sort from high to low"),
            Wrong(top(k="5")),
            Wrong(top("list(zip(values.tolist(), words))"), says="the pairs are reversed"),
            Wrong(top("list(zip(words, values))"), says="a number was expected"),
        ],
        accept=[BY_SORTING, PLAIN_PYTHON],
    ),
    "00.head_pattern": Answers(
        reject=[
            Wrong(CACHED.format(take="[:, head]"), says="the batch axis is still there"),
            Wrong(CACHED.format(take="[0, 0]")),
        ],
        accept=[HOOKED_PATTERN, WHOLE_CACHE],
    ),
    "00.without_head": Answers(
        reject=[Wrong(LEFT_ON, says="leaves a hook"), Wrong(WEIGHTS_ZEROED, says="it changes the model's weights")],
        accept=[WITH_MASK, WEIGHTS_PUT_BACK],
    ),
    "00.kl_from_truth": Answers(
        reject=[Wrong(truth_changed, says="it changes its input"), Wrong(with_nan, says="NaN")],
        accept=[with_xlogy, with_distributions],
    ),
    "00.damage": Answers(
        reject=[
            Wrong(damaged("kl(before, before).mean()"), says="nothing changes"),
            Wrong(damaged(result="result.T"), says="heads and layers are swapped"),
            Wrong(HOOKS_PILE_UP, says="leaves a hook"),
        ],
        accept=[damaged(), WITH_BATCHMEAN],
    ),
}
