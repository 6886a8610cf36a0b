"""Answers for lesson 05."""

import itertools
import random
from functools import lru_cache

import numpy as np
import torch
from transformer_lens import FactoredMatrix

from answers import Answers, Wrong
from course_utils.ablation import ablate
from course_utils.passes import head_weights, hook_z
from course_utils.path_patching import head_reading, path_logits, put_reading

# --- 05.composition_score -------------------------------------------------------------------------------------------


def norms_by_hand(first, second):
    def norm(dense):
        return dense.pow(2).sum().sqrt()
    return (norm(first.AB @ second.AB) / norm(first.AB) / norm(second.AB)).item()


def by_traces(first, second):
    product, a, b = first.AB @ second.AB, first.AB, second.AB
    return (torch.trace(product.T @ product) / (torch.trace(a.T @ a) * torch.trace(b.T @ b))).sqrt()


def sums_of_singular_values(first, second):
    def size(dense):
        return torch.linalg.svdvals(dense).sum()
    return (size(first.AB @ second.AB) / (size(first.AB) * size(second.AB))).item()


# --- 05.K_comp_full_circuit -----------------------------------------------------------------------------------------


@lru_cache
def the_notebooks_model():
    """Another model than the one that is passed in, as the notebook's global `model` would be."""
    from course_utils.planted import planted_induction_model

    return planted_induction_model(n_tokens=12, n_ctx=16)


def reads_a_global_model(model, prev_token_layer_index, ind_layer_index, prev_token_head_index, ind_head_index):
    """The article's slip, carried through: all weights come from a global variable."""
    gpt2_small = the_notebooks_model()
    ind = head_weights(gpt2_small, 1, 0)
    prev = head_weights(gpt2_small, 0, 0)
    return FactoredMatrix(gpt2_small.W_E @ ind["Q"], (gpt2_small.W_E @ prev["V"] @ prev["O"] @ ind["K"]).T)


CIRCUIT = """
from transformer_lens import FactoredMatrix
def f(model, prev_layer, ind_layer, prev_head, ind_head, **options):
    first, second, E = model.blocks[prev_layer].attn, model.blocks[ind_layer].attn, model.W_E
    group = model.cfg.n_heads // first.W_K.shape[0]
    p, i = {p}, {i}
    Q, K, V, O = second.W_Q[ind_head], second.W_K[i], first.W_V[p], first.W_O[prev_head]
    return {answer}
"""


def circuit(answer, p="prev_head // group", i="ind_head // group"):
    return CIRCUIT.format(answer=answer, p=p, i=i)


def by_the_librarys_products(model, prev_layer, ind_layer, prev_head, ind_head):
    """QK of one head and OV of the other, as factored matrices."""
    QK, OV = model.QK, model.OV
    ask = FactoredMatrix(QK.A[ind_layer, ind_head], QK.B[ind_layer, ind_head])
    move = FactoredMatrix(OV.A[prev_layer, prev_head], OV.B[prev_layer, prev_head])
    return model.W_E @ ask @ (model.W_E @ move).T


# --- 05.random_head_pairs -------------------------------------------------------------------------------------------

PAIRS = """
import random
def f(n_layers, n_heads, n_pairs, *, exclude=(), seed=0):
    rng = random.Random({seed})
    heads = [(layer, head) for layer in range({layers}) for head in range({heads}){excluding}]
    pairs = [{pair} for a in heads for b in heads if {when}]
    return {draw}
"""
USUAL = {"seed": "seed", "layers": "n_layers", "heads": "n_heads", "excluding": " if (layer, head) not in exclude",
         "pair": "(a, b)", "when": "a[0] < b[0]", "draw": "rng.sample(pairs, n_pairs)"}


def pairs(**changes):
    return PAIRS.format(**{**USUAL, **changes})


def drawn_one_by_one(n_layers, n_heads, n_pairs, *, exclude=(), seed=0):
    rng, found = random.Random(seed), []
    while len(found) < n_pairs:
        a, b = ((rng.randrange(n_layers), rng.randrange(n_heads)) for _ in range(2))
        if a[0] < b[0] and a not in exclude and b not in exclude and (a, b) not in found:
            found.append((a, b))
    return found


def with_torch(n_layers, n_heads, n_pairs, *, exclude=(), seed=0):
    order = torch.Generator().manual_seed(seed)
    every = [((i, j), (k, m)) for i in range(n_layers) for j in range(n_heads) for k in range(i + 1, n_layers)
             for m in range(n_heads) if (i, j) not in exclude and (k, m) not in exclude]
    return [every[index] for index in torch.randperm(len(every), generator=order)[:n_pairs]]


def with_numpy(n_layers, n_heads, n_pairs, *, exclude=(), seed=0):
    heads = [head for head in itertools.product(range(n_layers), range(n_heads)) if head not in exclude]
    every = [pair for pair in itertools.combinations(heads, 2) if pair[0][0] != pair[1][0]]
    return [every[i] for i in np.random.default_rng(seed).choice(len(every), n_pairs, replace=False)]


def torchs_own_generator(n_layers, n_heads, n_pairs, *, exclude=(), seed=0):
    heads = [head for head in itertools.product(range(n_layers), range(n_heads)) if head not in exclude]
    every = [pair for pair in itertools.combinations(heads, 2) if pair[0][0] != pair[1][0]]
    return [every[i] for i in torch.randperm(len(every))[:n_pairs]]


def first_one_then_a_later_one(n_layers, n_heads, n_pairs, *, exclude=(), seed=0):
    """Heads of the last layers have fewer heads after them: their pairs come more often."""
    rng, found = random.Random(seed), []
    heads = [(layer, head) for layer in range(n_layers) for head in range(n_heads) if (layer, head) not in exclude]
    while len(found) < n_pairs:
        first = rng.choice([head for head in heads if head[0] < n_layers - 1])
        pair = first, rng.choice([head for head in heads if head[0] > first[0]])
        if pair not in found:
            found.append(pair)
    return found


def two_layers_then_two_heads(n_layers, n_heads, n_pairs, *, exclude=(), seed=0):
    """The excluded head is drawn again, alone: the other head of its layer comes twice as often."""
    rng, found = random.Random(seed), set()
    def head(layer):
        return layer, rng.choice([h for h in range(n_heads) if (layer, h) not in exclude])
    while len(found) < n_pairs:
        found.add(tuple(head(layer) for layer in sorted(rng.sample(range(n_layers), 2))))
    return sorted(found)


def only_next_layer(n_layers, n_heads, n_pairs, *, exclude=(), seed=0):
    """All pairs whose layers are neighbours, then again from the start."""
    every = [((i, j), (i + 1, m)) for i in range(n_layers - 1) for j in range(n_heads) for m in range(n_heads)
             if (i, j) not in exclude and (i + 1, m) not in exclude]
    random.Random(seed).shuffle(every)
    return (every * 2)[:n_pairs]


# --- 05.head_reading ------------------------------------------------------------------------------------------------

READING = """
from course_utils.circuits import head_weights
def f(model, layer, head, name, residual):
    attn, block = model.blocks[layer].attn, model.blocks[layer]
    weights = head_weights(model, layer, head)
    W, b = weights[name.upper()], weights["b_" + name.upper()]
    return {answer}
"""


def reading(answer):
    return READING.format(answer=answer)


def from_the_model_itself(model, layer, head, name, residual):
    """Run the block with the hook on, and read what it made."""
    kept = {}
    hook = f"blocks.{layer}.attn.hook_{name}"
    tokens = torch.zeros(residual.shape[:2], dtype=torch.long)
    model.run_with_hooks(tokens, return_type=None, fwd_hooks=[
        (f"blocks.{layer}.hook_resid_pre", lambda value, hook: residual),
        (hook, lambda value, hook: kept.update(x=value.clone()))])
    return kept["x"][:, :, head // (model.cfg.n_heads // kept["x"].shape[2])]

# --- 05.patch_path and 05.restore_path -------------------------------------------------------------------------------


PATH = """
from course_utils.ablation import ablate
from course_utils.passes import head_weights, hook_z
from course_utils.path_patching import head_reading, put_reading
def f(model, tokens, sender, receivers, into):
    _, cache = model.run_with_cache(tokens)
    z, O = cache[hook_z(sender[0])][:, :, sender[1]], model.blocks[sender[0]].attn.W_O[sender[1]]
    change, hooks = {change}, []
    for layer, head in receivers:
        block, stream, weights = model.blocks[layer], {stream}, head_weights(model, layer, head)
        for name in into:
            hooks.append(put_reading(model, layer, head, name, {reading}))
    return {answer}
"""
USUAL_PATH = {"change": "(ablate(z, 'mean') - z) @ O", "stream": "cache[f'blocks.{layer}.hook_resid_pre']",
              "reading": "head_reading(model, layer, head, name, stream + change)",
              "answer": "model.run_with_hooks(tokens, fwd_hooks=hooks)"}


def path(**changes):
    return PATH.format(**{**USUAL_PATH, **changes})


LATE_BINDING = """
from course_utils.ablation import ablate
from course_utils.passes import head_weights, hook_z
from course_utils.path_patching import head_reading
def f(model, tokens, sender, receivers, into):
    _, cache = model.run_with_cache(tokens)
    z = cache[hook_z(sender[0])][:, :, sender[1]]
    change, hooks = (ablate(z, "mean") - z) @ head_weights(model, *sender)["O"], []
    for layer, head in receivers:
        for name in into:
            reading = head_reading(model, layer, head, name, cache[f"blocks.{layer}.hook_resid_pre"] + change)
            def put(x, hook):                                   # sees the last reading and head only
                x = x.clone()
                x[:, :, head * x.shape[2] // model.cfg.n_heads] = reading
                return x
            hooks.append((f"blocks.{layer}.attn.hook_{name}", put))
    return model.run_with_hooks(tokens, fwd_hooks=hooks)
"""


def without_the_sender(sender):
    def remove(z, hook):
        z = z.clone()
        z[:, :, sender[1]] = ablate(z[:, :, sender[1]], "mean")
        return z
    return hook_z(sender[0]), remove


def path_by_a_second_run(model, tokens, sender, receivers, into):
    """What the sender's attention adds with and without it; the readings as the receivers' own blocks make them."""
    name = f"blocks.{sender[0]}.hook_attn_out"
    before = model.run_with_cache(tokens, names_filter=name)[1][name]
    with model.hooks(fwd_hooks=[without_the_sender(sender)]):
        after = model.run_with_cache(tokens, names_filter=name)[1][name]
    hooks = []
    for layer, head in receivers:
        kept = {}
        watch = [(f"blocks.{layer}.hook_resid_pre", lambda x, hook: x + after - before)]
        watch += [(f"blocks.{layer}.attn.hook_{each}", lambda x, hook: kept.update({hook.name: x.clone()}))
                  for each in into]
        model.run_with_hooks(tokens, fwd_hooks=watch)
        for at, value in kept.items():
            def put(x, hook, head=head, value=value):
                own = head // (model.cfg.n_heads // x.shape[2])
                return torch.cat([x[:, :, :own], value[:, :, own:own + 1], x[:, :, own + 1:]], dim=2)
            hooks.append((at, put))
    return model.run_with_hooks(tokens, fwd_hooks=hooks)


def restored(model, tokens, sender, receivers, into, from_clean, put_back):
    _, clean = model.run_with_cache(tokens)
    with model.hooks(fwd_hooks=[without_the_sender(sender)]):
        _, ablated = model.run_with_cache(tokens)
    z = clean[hook_z(sender[0])][:, :, sender[1]]
    change = put_back * (z - ablate(z, "mean")) @ head_weights(model, *sender)["O"]
    streams = clean if from_clean else ablated
    streams = [streams[f"blocks.{layer}.hook_resid_pre"] + change for layer, _ in receivers]
    hooks = [put_reading(model, *each, name, head_reading(model, *each, name, stream))
             for each, stream in zip(receivers, streams) for name in into]
    return model.run_with_hooks(tokens, fwd_hooks=[without_the_sender(sender), *hooks])


def restored_in_one_run(*args):
    return restored(*args, from_clean=False, put_back=1)


def neighbours(n_layers, n_heads, n_pairs, *, exclude=(), seed=0):
    """A stretch of the list from a random start: pairs that share a sender come together."""
    heads = [head for head in itertools.product(range(n_layers), range(n_heads)) if head not in exclude]
    every = [pair for pair in itertools.combinations(heads, 2) if pair[0][0] != pair[1][0]]
    start = random.Random(seed).randrange(len(every))
    return (every * 2)[start:start + n_pairs]


ANSWERS = {
    "05.composition_score": Answers(
        reject=[
            Wrong(lambda first, second: ((first @ second).norm() ** 2 / (first.norm() * second.norm()) ** 2).item()),
            Wrong(sums_of_singular_values),
        ],
        accept=[norms_by_hand, by_traces],
    ),
    "05.K_comp_full_circuit": Answers(
        reject=[
            Wrong(reads_a_global_model, says="a model that is not its argument"),
            Wrong(circuit("(E @ Q, (E @ V @ O @ K).T)"), says="FactoredMatrix(left, right) was expected"),
            Wrong(circuit("(E @ Q) @ (E @ V @ O @ K).T"), says="FactoredMatrix(left, right) was expected"),
            Wrong(circuit("FactoredMatrix(E @ Q, (E @ V @ O @ K).T)", p="prev_head", i="ind_head")),     # no such key
        ],
        accept=[circuit("FactoredMatrix(E @ Q, (E @ V @ O @ K).T)"), by_the_librarys_products],
    ),
    "05.random_head_pairs": Answers(
        reject=[
            Wrong(pairs(when="a[0] <= b[0] and a != b"), says="in a later layer than the first"),
            Wrong(pairs(pair="(b, a)"), says="the wrong way round"),
            Wrong(pairs(draw="[rng.choice(pairs) for _ in range(n_pairs)]"), says="a pair comes twice"),
            Wrong(pairs(excluding=""), says="an excluded head is in a pair"),
            Wrong(only_next_layer, says="some pairs can never come"),
            Wrong(pairs(when="a[0] + 1 == b[0]"), says="some pairs can never come"),
            Wrong(first_one_then_a_later_one, says="some pairs come more often"),
            Wrong(two_layers_then_two_heads, says="some pairs come more often"),
            Wrong(torchs_own_generator, says="different seeds give the same pairs"),
            Wrong(neighbours, says="belong together"),
            Wrong(pairs(seed=""), says="the same seed gave two different draws"),
            Wrong(pairs(seed="0"), says="different seeds give the same pairs"),
            Wrong(pairs(draw="rng.sample(pairs, n_pairs - 1)"), says="not the one asked for"),
            Wrong(pairs(heads="1, n_heads + 1"), says="there is no such head"),
            Wrong(pairs(draw="pairs[:n_pairs]"), says="different seeds give the same pairs"),
            Wrong(pairs(draw="rng.sample(heads, n_pairs)")),
        ],
        accept=[pairs(), drawn_one_by_one, with_torch, with_numpy],
    ),
    "05.head_reading": Answers(
        reject=[
            Wrong(reading("torch.einsum('bpd,hdk->bphk', block.ln1(residual), attn.W_Q)"), says="all heads are there"),
            Wrong(reading("block.ln1(residual @ W) + b")),
        ],
        accept=[reading("block.ln1(residual) @ W + b"), from_the_model_itself],
    ),
    "05.patch_path": Answers(
        reject=[
            Wrong(LATE_BINDING),
            Wrong(path(stream="cache[f'blocks.{sender[0]}.hook_resid_pre']")),
            Wrong(path(reading="(stream + change) @ weights[name.upper()] + weights['b_' + name.upper()]")),
            *(Wrong(path(reading=f"{norm}(stream + change) @ weights[name.upper()] + weights['b_' + name.upper()]"))
              for norm in ("block.ln2", "model.blocks[0].ln1", "model.ln_final")),
        ],
        accept=[path(), path_by_a_second_run],
    ),
    "05.restore_path": Answers(
        reject=[
            Wrong(lambda model, tokens, sender, receivers, into: path_logits(
                model, tokens, sender, receivers[::-1][:1], into, restore=True)),
        ],
        accept=[lambda model, tokens, *path: path_logits(model, tokens, *path, restore=True), restored_in_one_run],
    ),
}
