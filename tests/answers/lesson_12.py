"""Answers for lesson 12."""

import torch

from answers import Answers, Wrong
from course_utils.attribution_graphs import run_features
from course_utils.passes import centred
from course_utils.transcoders import replaced_logits

# --- 12.transcode ---------------------------------------------------------------------------------------------


def by_threshold(x, W_enc, b_enc, W_dec, b_dec, k):
    pre = torch.einsum("nd,df->nf", x, W_enc) + b_enc
    least = pre.sort(dim=1, descending=True).values[:, k - 1:k]
    f = torch.where(pre >= least, pre, 0).clamp(min=0)
    return f, torch.einsum("nf,fd->nd", f, W_dec) + b_dec


def token_by_token(x, W_enc, b_enc, W_dec, b_dec, k):
    f = torch.zeros(len(x), len(b_enc))
    y = b_dec.repeat(len(x), 1)
    for i, row in enumerate(x):
        pre = row @ W_enc + b_enc
        for j in pre.argsort(descending=True)[:k].tolist():
            f[i, j] = max(pre[j], 0)
            y[i] += f[i, j] * W_dec[j]
    return f, y


def two_features_less(x, W_enc, b_enc, W_dec, b_dec, k):
    return by_threshold(x, W_enc, b_enc, W_dec, b_dec, k - 1)


def softmaxed(x, W_enc, b_enc, W_dec, b_dec, k):
    f = (x @ W_enc + b_enc).softmax(dim=-1)
    return f, f @ W_dec + b_dec


# --- 12.replaced_logits ---------------------------------------------------------------------------------------


def with_partial(model, transcoders, tokens):
    from functools import partial

    read = {}

    def note(x, hook):
        read[int(hook.name.split(".")[1])] = x.clone()

    def write(layer, y, hook):
        y = y.clone()
        y[:, 1:] = transcoders[layer](read[layer][:, 1:])
        return y
    hooks = [(f"blocks.{layer}.mlp.hook_in", note) for layer in transcoders]
    return model.run_with_hooks(tokens, fwd_hooks=hooks + [
        (f"blocks.{layer}.hook_mlp_out", partial(write, layer)) for layer in transcoders])


def one_place_late(model, transcoders, tokens):
    swapped = {layer: Shifted(each) for layer, each in transcoders.items()}
    return replaced_logits(model, swapped, tokens)


class Shifted(torch.nn.Module):
    """Writes at each position what belongs to the position before."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x).roll(1, dims=1)


# --- 12.edge --------------------------------------------------------------------------------------------------


def edge_by_difference(frozen, written, source, target):
    """Two streams, with and without what was written."""
    with_it = torch.zeros_like(frozen.embedded)
    with_it[source.position] = written
    without = torch.zeros_like(with_it)
    for layer in range(source.layer + 1, target.layer + 1):
        with_it, without = with_it + frozen.attention(layer, with_it), without + frozen.attention(layer, without)
    change = (centred(frozen.model, with_it - without) / frozen.mlp_scales[target.layer])[target.position]
    return change @ frozen.transcoders[target.layer].W_enc[:, target.index]


def edge_by_gradient(frozen, written, source, target):
    with torch.enable_grad():
        zeros = [torch.zeros_like(frozen.embedded, requires_grad=True) for _ in range(len(frozen.errors) + 1)]
        reads = frozen.reads(zeros[0], lambda layer, read: zeros[layer + 1])
        pre = reads[target.layer][target.position] @ frozen.transcoders[target.layer].W_enc[:, target.index]
        slope, = torch.autograd.grad(pre, zeros[source.layer + 1])
    return (slope[source.position] @ written).item()


def edge_with_the_scale_of_the_source(frozen, written, source, target):
    return edge_by_gradient(frozen, written, source, target) * (
        frozen.mlp_scales[target.layer][target.position] / frozen.mlp_scales[target.layer][source.position]).item()


# --- 12.influence ---------------------------------------------------------------------------------------------


def by_powers(edges, weights):
    A = edges.abs() / edges.abs().sum(1, keepdim=True).clamp_min(1e-10)
    return sum(weights @ torch.linalg.matrix_power(A, n) for n in range(1, len(edges) + 1))


def from_the_answers_down(edges, weights):
    """Node by node, the last first: all that flows into a node is known before it is passed on."""
    shares = edges.abs() / edges.abs().sum(1, keepdim=True).clamp_min(1e-10)
    found = torch.zeros_like(weights)
    for target in reversed(range(len(edges))):
        found = found + (found[target] + weights[target]) * shares[target]
    return found


def with_shares_of_nothing(edges, weights):
    """0 / 0 where no edge enters."""
    A = edges.abs() / edges.abs().sum(1, keepdim=True)
    return sum(weights @ torch.linalg.matrix_power(A, n) for n in range(1, len(edges) + 1))


# --- 12.equally_large -----------------------------------------------------------------------------------------


def by_masking(sizes, places, chosen):
    free = torch.ones(len(sizes), dtype=torch.bool)
    free[chosen] = False
    found = []
    for node in chosen:
        far = (sizes - sizes[node]).abs().masked_fill(~(free & (places == places[node])), torch.inf)
        if far.isfinite().any():
            found.append(int(far.argmin()))
            free[found[-1]] = False
    return found


def by_sorting(sizes, places, chosen):
    used, found = set(chosen), []
    for node in chosen:
        order = sorted(range(len(sizes)), key=lambda other: abs(float(sizes[other]) - float(sizes[node])))
        found += [other for other in order if other not in used and int(places[other]) == int(places[node])][:1]
        used |= set(found)
    return found


# --- 12.with_patterns_of --------------------------------------------------------------------------------------


def with_a_hook_for_each_layer(model, tokens, others):
    seen = {}
    model.run_with_hooks(others, fwd_hooks=[
        (f"blocks.{layer}.attn.hook_pattern", lambda pattern, hook: seen.__setitem__(hook.name, pattern.clone()))
        for layer in range(model.cfg.n_layers)])
    return model.run_with_hooks(tokens, fwd_hooks=[
        (name, lambda pattern, hook, kept=kept: kept) for name, kept in seen.items()])


def text_by_text(model, tokens, others):
    return torch.cat([with_a_hook_for_each_layer(model, tokens[i:i + 1], others[i:i + 1]) for i in range(len(tokens))])


def mean_pattern(model, tokens, others):
    cache = model.run_with_cache(others)[1]
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    return model.run_with_hooks(tokens, fwd_hooks=[
        (name, lambda pattern, hook: (pattern + cache[hook.name]) / 2) for name in names])


# --- 12.features_kept -----------------------------------------------------------------------------------------


def kept_in_place(model, transcoders, clean, corrupted, kept, metric):
    found = []

    def note(layer, features):
        found.append(features.clone())
        return features
    run_features(model, transcoders, corrupted, note)

    def mix(layer, features):
        out = found[sorted(transcoders).index(layer)].clone()
        out[kept[layer]] = features[kept[layer]]
        return out
    low, high = metric(model(corrupted)), metric(model(clean))
    return (metric(run_features(model, transcoders, clean, mix)) - low) / (high - low).mean()


def kept_by_factors(model, transcoders, clean, corrupted, kept, metric):
    others = {}
    low = metric(run_features(model, transcoders, corrupted, lambda layer, f: others.setdefault(layer, f)))
    high = metric(run_features(model, transcoders, clean, lambda layer, f: f))
    got = metric(run_features(model, transcoders, clean,
                              lambda layer, f: f * kept[layer] + others[layer] * ~kept[layer]))
    return torch.stack([each / (high - low).mean() for each in got - low])


ANSWERS = {
    "12.transcode": Answers(
        reject=[Wrong(two_features_less), Wrong(softmaxed)],
        accept=[by_threshold, token_by_token],
    ),
    "12.replaced_logits": Answers(
        reject=[Wrong(one_place_late)],
        accept=[with_partial, lambda model, transcoders, tokens: torch.cat(
            [replaced_logits(model, transcoders, row[None]) for row in tokens])],
    ),
    "12.edge": Answers(
        reject=[Wrong(edge_with_the_scale_of_the_source), Wrong(lambda *args: abs(edge_by_gradient(*args)))],
        accept=[edge_by_difference, edge_by_gradient],
    ),
    "12.influence": Answers(
        reject=[
            Wrong(lambda edges, weights: weights @ edges.abs(), says=None),
            Wrong(with_shares_of_nothing, says="NaN, from 0 / 0"),
        ],
        accept=[by_powers, from_the_answers_down],
    ),
    "12.equally_large": Answers(
        reject=[
            Wrong(lambda sizes, places, chosen: by_masking(sizes, places, chosen[::-1])[::-1]),
            Wrong(lambda sizes, places, chosen: by_masking(sizes, places, chosen)[:-1]),
        ],
        accept=[by_masking, by_sorting],
    ),
    "12.with_patterns_of": Answers(
        reject=[Wrong(mean_pattern)],
        accept=[with_a_hook_for_each_layer, text_by_text],
    ),
    "12.features_kept": Answers(
        reject=[Wrong(lambda *args: kept_in_place(*args).mean(), says="keep one number for each text")],
        accept=[kept_in_place, kept_by_factors],
    ),
}
