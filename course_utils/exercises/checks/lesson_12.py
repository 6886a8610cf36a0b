"""Exercises of lesson 12: attribution graphs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from course_utils import attribution_graphs as package
from course_utils import transcoders as package_transcoders
from course_utils.attribution_graphs import FrozenModel, Node, run_features
from course_utils.exercises.checking import Case, Exercise, compare_cases
from course_utils.exercises.checks.shared import drawn, grouped_query_model, random_model, random_tokens
from course_utils.exercises.mistakes import seen, variants
from course_utils.passes import centred
from course_utils.transcoders import Transcoder

Metric = Callable[[Float[Tensor, "n pos vocab"]], Float[Tensor, "n"]]

# --- the course's answers -----------------------------------------------------------------------------------------


def transcode(
    x: Float[Tensor, "n d_model"], W_enc: Float[Tensor, "d_model d_sae"], b_enc: Float[Tensor, "d_sae"],
    W_dec: Float[Tensor, "d_sae d_model"], b_dec: Float[Tensor, "d_model"], k: int
) -> tuple[Float[Tensor, "n d_sae"], Float[Tensor, "n d_model"]]:
    """The features f, of which at most k are not 0, and y, what the transcoder writes."""
    pre = x @ W_enc + b_enc
    largest = pre.topk(k, dim=-1)
    f = torch.zeros_like(pre).scatter(-1, largest.indices, largest.values.relu())
    return f, f @ W_dec + b_dec


def replaced_logits(
    model: TransformerBridge, transcoders: dict[int, Transcoder], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos vocab"]:
    """Logits when some layers' MLPs write what their transcoders give for what they read, but at the first position."""
    read, hooks = {}, []
    for layer in transcoders:
        def note(x, hook, layer=layer):
            read[layer] = x

        def write(y, hook, layer=layer):
            return torch.cat([y[:, :1], transcoders[layer](read[layer])[:, 1:]], dim=1)
        hooks += [(f"blocks.{layer}.mlp.hook_in", note), (f"blocks.{layer}.hook_mlp_out", write)]
    return model.run_with_hooks(tokens, fwd_hooks=hooks)


def edge(frozen: FrozenModel, written: Float[Tensor, "d_model"], source: Node, target: Node) -> float:
    """What `written`, added to the stream by `source`, adds to the pre-activation of the feature `target`."""
    x = torch.zeros_like(frozen.embedded)                                       # [pos, d_model]
    nothing = torch.zeros_like(x)
    x[source.position] = written
    for layer in range(source.layer + 1, target.layer + 1):
        x = x + frozen.attention(layer, x) - frozen.attention(layer, nothing)
    read = centred(frozen.model, x) / frozen.mlp_scales[target.layer]
    direction = frozen.transcoders[target.layer].W_enc[:, target.index]
    return (read[target.position] @ direction).item()


def influence(edges: Float[Tensor, "node node"], weights: Float[Tensor, "node"]) -> Float[Tensor, "node"]:
    """The sum over all paths from each node to what is weighted; a path counts as the product of its shares."""
    sizes = edges.abs()
    A = sizes / sizes.sum(dim=1, keepdim=True).clamp(min=1e-10)                 # [target, source]
    found, flow = torch.zeros_like(weights), weights
    for _ in range(len(edges)):
        flow = flow @ A
        found = found + flow
    return found


def equally_large(
    sizes: Float[Tensor, "node"], places: Int[Tensor, "node"], chosen: list[int]
) -> list[int]:
    """For each chosen node, in order, the one nearest in size at the same place that is not chosen or taken yet.

    A chosen node for which none is free has none.
    """
    places, found = places.tolist(), []
    for node in chosen:
        free = [other for other in range(len(sizes))
                if places[other] == places[node] and other not in chosen and other not in found]
        if free:
            found.append(min(free, key=lambda other: abs(sizes[other] - sizes[node]).item()))
    return found


def with_patterns_of(
    model: TransformerBridge, tokens: Int[Tensor, "n pos"], others: Int[Tensor, "n pos"]
) -> Float[Tensor, "n pos vocab"]:
    """Logits of a pass on `tokens` in which all heads attend as they do on `others`."""
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    _, cache = model.run_with_cache(others, names_filter=names)

    def put(pattern, hook):
        return cache[hook.name]
    return model.run_with_hooks(tokens, fwd_hooks=[(name, put) for name in names])


def features_kept(
    model: TransformerBridge, transcoders: dict[int, Transcoder], clean: Int[Tensor, "n pos"],
    corrupted: Int[Tensor, "n pos"], kept: dict[int, Bool[Tensor, "n pos d_sae"]], metric: Metric
) -> Float[Tensor, "n"]:
    """What each text keeps when all features outside `kept` have the activation of the corrupted text."""
    others = {}

    def note(layer, features):
        others[layer] = features
        return features

    def mix(layer, features):
        return torch.where(kept[layer], features, others[layer])
    nothing = metric(run_features(model, transcoders, corrupted, note))
    whole = metric(model(clean))
    mixed = metric(run_features(model, transcoders, clean, mix))
    return (mixed - nothing) / (whole - nothing).mean()


# --- inputs -------------------------------------------------------------------------------------------------------


def last_difference(logits):
    """Logit of token 4 minus that of token 9, at the last position."""
    return logits[:, -1, 4] - logits[:, -1, 9]


@cache
def random_transcoders() -> dict[str, dict[int, Transcoder]]:
    """Transcoders with random weights for each layer of the two random models."""
    return {name: {layer: random_transcoder(model.cfg.d_model, layer) for layer in range(model.cfg.n_layers)}
            for name, model in (("random", random_model()), ("grouped", grouped_query_model()))}


def random_transcoder(d_model: int, seed: int) -> Transcoder:
    transcoder = Transcoder(d_model, 12, "topk", k=4).requires_grad_(False)
    for number, weight in enumerate(transcoder.parameters()):
        weight.data = 0.4 * drawn(*weight.shape, seed=10 * seed + number)
    return transcoder


def transcode_cases() -> list[Case]:
    def case(n, d_model, d_sae, k, seed, shift, label):
        weights = [drawn(*shape, seed=seed + i) for i, shape in enumerate(
            [(n, d_model), (d_model, d_sae), (d_sae,), (d_sae, d_model), (d_model,)])]
        weights[2] = weights[2] + shift
        return Case(*weights, k, label=label)
    return [case(5, 4, 9, 3, 0, 0.0, "5 tokens, 3 of 9 features"),
            case(4, 3, 7, 5, 20, -2.0, "5 of 7, and fewer than 5 above 0")]


def replaced_cases() -> list[Case]:
    both = random_transcoders()
    return [
        Case(random_model(), both["random"], random_tokens(2, 6, seed=1), label="random model, all layers"),
        Case(random_model(), {1: both["random"][1]}, random_tokens(3, 5, seed=2), label="layer 1 alone"),
        Case(grouped_query_model(), both["grouped"], random_tokens(2, 7, seed=3), label="grouped queries"),
    ]


def edge_cases() -> list[Case]:
    both = random_transcoders()
    def case(model, name, length, source, target, seed, label):
        frozen = FrozenModel(model, both[name], random_tokens(1, length, seed=seed)[0])
        return Case(frozen, drawn(model.cfg.d_model, seed=seed), source, target, label=label)
    return [
        case(random_model(), "random", 6, Node("feature", 0, 2, 3), Node("feature", 2, 4, 5), 5, "layer 0 to 2"),
        case(random_model(), "random", 7, Node("embedding", -1, 1, 8), Node("feature", 1, 3, 7), 6, "embedding to 1"),
        case(random_model(), "random", 6, Node("error", 1, 3), Node("feature", 2, 3, 2), 7, "an error, one place"),
        case(grouped_query_model(), "grouped", 6, Node("feature", 0, 1, 4), Node("feature", 1, 5, 9), 8,
             "grouped queries"),
    ]


def some_graph(n: int, seed: int) -> Tensor:
    """[target, source], sources first: nothing flows back."""
    edges = drawn(n, n, seed=seed).tril(-1)
    edges[torch.rand(n, n, generator=torch.Generator().manual_seed(seed)) < 0.3] = 0
    edges[:2] = 0
    return edges


def influence_cases() -> list[Case]:
    return [Case(some_graph(6, 0), torch.eye(6)[5], label="6 nodes, one answer"),
            Case(some_graph(9, 1), torch.tensor([0.0] * 7 + [0.6, 0.3]), label="9 nodes, two answers"),
            Case(some_graph(12, 2), 2 * torch.eye(12)[11], label="12 nodes")]


def large_cases() -> list[Case]:
    def case(n, places, chosen, seed, label):
        rng = torch.Generator().manual_seed(seed)
        sizes = torch.randperm(50, generator=rng)[:n].float() + torch.arange(n) / 100
        return Case(sizes, torch.randint(places, (n,), generator=rng), chosen, label=label)
    return [case(14, 2, [3, 0, 7], 2, "14 nodes at 2 places"), case(20, 3, [5, 2, 11, 8], 27, "20 nodes at 3 places"),
            Case(torch.tensor([5.0, 5.1, 4.7, 9.0, 5.25, 1.0, 7.0]), torch.tensor([0, 0, 0, 0, 0, 0, 1]), [6, 0, 1],
                 label="two that want the same, and one without a partner")]


def pattern_cases() -> list[Case]:
    return [Case(random_model(), random_tokens(3, 6, seed=1), random_tokens(3, 6, seed=2), label="random model"),
            Case(grouped_query_model(), random_tokens(2, 7, seed=3), random_tokens(2, 7, seed=4),
                 label="grouped queries")]


def kept_cases() -> list[Case]:
    both = random_transcoders()
    def case(model, name, n, length, share, seed, label):
        clean, corrupted = (random_tokens(n, length, seed=seed + i) for i in (0, 1))
        rng = torch.Generator().manual_seed(seed)
        kept = {layer: torch.rand(n, length, 12, generator=rng) < share for layer in both[name]}
        return Case(model, both[name], clean, corrupted, kept, last_difference, label=label)
    return [case(random_model(), "random", 3, 6, 0.5, 30, "random model, about half of the features"),
            case(random_model(), "random", 4, 5, 0.2, 40, "about a fifth"),
            case(grouped_query_model(), "grouped", 2, 7, 0.7, 50, "grouped queries")]


# --- known mistakes -----------------------------------------------------------------------------------------------

TRANSCODE_MISTAKES = variants(transcode, {
    "b_dec is subtracted from x first, as some autoencoders do: x and y are at two places of the model, and b_dec is "
    "y's": {"pre = x @ W_enc": "pre = (x - b_dec) @ W_enc"},
    "b_enc is missing in the pre-activations": {"x @ W_enc + b_enc": "x @ W_enc"},
    "b_dec is missing in what is written": {"f @ W_dec + b_dec": "f @ W_dec"},
    "features below 0 are kept: the largest k may hold some, so take their relu":
        {"largest.values.relu()": "largest.values"},
    "all features above 0 are kept: keep the k largest of each token":
        {"f = torch.zeros_like(pre).scatter(-1, largest.indices, largest.values.relu())": "f = pre.relu()"},
    "the k largest in size are kept, those far below 0, too: take the largest":
        {"largest = pre.topk(k, dim=-1)": "largest = pre.abs().topk(k, dim=-1)",
         "largest.values.relu()": "pre.gather(-1, largest.indices).relu()"},
    "active features are set to 1: they keep their values": {"largest.values.relu()": "(largest.values > 0).float()"},
    "only the k-th, the smallest of the k, is kept": {
        "largest.indices, largest.values.relu()": "largest.indices[:, -1:], largest.values[:, -1:].relu()"},
    "the k largest are taken over tokens: each token has k features of its own": {
        "pre.topk(k, dim=-1)": "pre.T.topk(min(k, len(x)), dim=-1)",
        "torch.zeros_like(pre).scatter(-1, largest.indices, largest.values.relu())":
        "torch.zeros_like(pre.T).scatter(-1, largest.indices, largest.values.relu()).T"},
    "the two are swapped: (features, what is written)": "f @ W_dec + b_dec, f",
})


WRITE = "torch.cat([y[:, :1], transcoders[layer](read[layer])[:, 1:]], dim=1)"
REPLACED_MISTAKES = variants(replaced_logits, {
    "the first position is replaced, too: no transcoder learned from it": {WRITE: "transcoders[layer](read[layer])"},
    "the transcoder's output is added to the MLP's: it takes its place":
        {WRITE: "torch.cat([y[:, :1], (y + transcoders[layer](read[layer]))[:, 1:]], dim=1)"},
    "the transcoder reads the stream: it reads what the MLP reads, after the norm, at `mlp.hook_in`": {
        '(f"blocks.{layer}.mlp.hook_in", note)': '(f"blocks.{layer}.hook_resid_mid", note)'},
    "the transcoder reads what the MLP writes: it reads what the MLP reads, at `mlp.hook_in`":
        {"transcoders[layer](read[layer])": "transcoders[layer](y)"},
    "all transcoders read what the untouched model's MLPs read: layers after a replaced one read something else now": {
        "read, hooks = {}, []": "read, hooks = {}, []\n_, cache = model.run_with_cache(tokens)",
        "read[layer] = x": 'read[layer] = cache[f"blocks.{layer}.mlp.hook_in"]'},
    "this is the untouched model: does the second hook return what is to be written?": {WRITE: "y"},
    "only the last of the layers is replaced: does the hook see the loop's last layer?": {
        "hooks += [": "hooks = ["},
    "the MLPs write nothing: their place is taken by what the transcoders give":
        {WRITE: "torch.cat([y[:, :1], 0 * y[:, 1:]], dim=1)"},
    "every hook uses the last layer's transcoder: a function made in a loop sees the loop's last `layer`; bind it, "
    "`layer=layer`": {"transcoders[layer](read[layer])": "transcoders[max(transcoders)](read[layer])"},
})


LOOP = "for layer in range(source.layer + 1, target.layer + 1):"
EDGE_MISTAKES = variants(edge, {
    "the heads' output biases are counted: they are constants, and not written by the source":
        {" - frozen.attention(layer, nothing)": ""},
    "attention is left out: what was written reaches other positions, and comes back, through the heads":
        {"x = x + frozen.attention(layer, x) - frozen.attention(layer, nothing)": "pass"},
    "the heads take the place of the stream: they are added to it":
        {"x = x + frozen.attention(layer, x)": "x = frozen.attention(layer, x)"},
    "the heads of the target's own layer are left out: they write before its MLP reads":
        {"target.layer + 1)": "target.layer)"},
    "the heads of the source's own layer are counted: they read before its MLP writes": {
        "range(source.layer + 1,": "range(max(source.layer, 0),"},
    "the norm is worked out for this vector alone: the scale is frozen, `frozen.mlp_scales`": {
        "frozen.mlp_scales[target.layer]": "(centred(frozen.model, x).pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()"},
    "the norm is left out: divide by `frozen.mlp_scales` of the target's layer": {
        " / frozen.mlp_scales[target.layer]": ""},
    "the mean is not subtracted: an MLP reads `centred(frozen.model, x)`, divided by the scale": {
        "centred(frozen.model, x)": "x"},
    "the scale is that before attention: the MLP's is in `frozen.mlp_scales`": {
        "frozen.mlp_scales[target.layer]": "frozen.scales[target.layer]"},
    "read at the source's position: the target reads at its own": {
        "read[target.position]": "read[source.position]"},
    "the target's decoder row is taken: it reads along its encoder's column": {
        "W_enc[:, target.index]": "W_dec[target.index]"},
    "the source's feature is read: the direction is the target's": {
        "W_enc[:, target.index]": "W_enc[:, source.index]"},
    "the target's bias is added: it is no part of an edge": {
        "@ direction).item()":
        "@ direction + frozen.transcoders[target.layer].b_enc[target.index]).item()"},
})


INFLUENCE_MISTAKES = variants(influence, {
    "the signs are kept: an inhibition is an influence, so take sizes": {
        "sizes / sizes.sum(dim=1, keepdim=True)": "edges / sizes.sum(dim=1, keepdim=True)"},
    "each source's edges are made to add up to 1: it is those into each target, a row": {"dim=1": "dim=0"},
    "the edges are not shares: divide each by the sum of its row": {
        "sizes / sizes.sum(dim=1, keepdim=True).clamp(min=1e-10)": "sizes"},
    "only the edges into the answers are counted: add the paths through other nodes": {
        "range(len(edges))": "range(1)"},
    "only paths of two edges are counted at most: there are longer ones": {"range(len(edges))": "range(2)"},
    "the answers themselves are counted: a path has at least one edge": {
        "torch.zeros_like(weights), weights": "weights, weights"},
    "only the longest paths are left: add up all lengths": {"found = found + flow": "found = flow"},
    "the flow runs from sources to targets: it starts at the answers and runs back": {"flow @ A": "A @ flow"},
    "the weights of the answers are left out: they say how much each answer counts": {
        "torch.zeros_like(weights), weights": "torch.zeros_like(weights), (weights > 0).to(weights)"},
    "made to add up to 1: influence is counted in the weights' unit": "found / found.sum()",
    "NaN, from 0 / 0: a node that no edge enters has no shares, and its row of A is 0":
        seen(lambda got, expected: isinstance(got, torch.Tensor) and bool(got.isnan().any())),
})


NEAREST = "min(free, key=lambda other: abs(sizes[other] - sizes[node]).item())"
LARGE_MISTAKES = variants(equally_large, {
    "a chosen node is its own control, or another chosen one's: leave all chosen ones out": {
        "and other not in chosen and": "and other not in chosen[:0] and"},
    "a chosen node is another one's control: leave all chosen ones out": {
        "other not in chosen and": "other != node and"},
    "the largest chosen node takes its control first: take them in the order that is given": {
        "for node in chosen:": "partner = {}\nfor node in sorted(chosen, key=lambda each: -sizes[each]):",
        "found.append(": "partner[node] = len(found)\nfound.append(",
        "return found": "return [found[partner[node]] for node in chosen if node in partner]"},
    "a control is taken twice: each once": {" and other not in found]": "]"},
    "the place is left out: compare at the same layer and position": {
        "places[other] == places[node] and ": ""},
    "another place is asked for: it is to be the same": {
        "places[other] == places[node]": "places[other] != places[node]"},
    "the sign of the difference is kept: the smallest node is not the nearest": {
        "abs(sizes[other] - sizes[node]).item()": "(sizes[other] - sizes[node]).item()"},
    "these are the largest ones left: take the nearest in size": {NEAREST: "max(free, key=lambda other: sizes[other])"},
    "these are the first ones left: take the nearest in size": {NEAREST: "free[0]"},
    "these are the least similar: take the nearest": {"min(free,": "max(free,"},
    "sorted by number: the i-th control belongs to the i-th chosen node": "sorted(found)",
})


PATTERN_MISTAKES = variants(with_patterns_of, {
    "tokens and others are swapped: the model reads `tokens`, and attends as on `others`": {
        "run_with_cache(others": "run_with_cache(tokens", "run_with_hooks(tokens": "run_with_hooks(others"},
    "these are its own patterns: remember those of `others`": {"run_with_cache(others": "run_with_cache(tokens"},
    "this is the other text's own pass: the model reads `tokens`": {"run_with_hooks(tokens": "run_with_hooks(others"},
    "only the first layer's patterns are put in place: all layers'": {
        "for name in names]": "for name in names[:1]]"},
    "only the last layer's patterns are put in place: all layers'": {
        "for name in names]": "for name in names[-1:]]"},
    "only one head is patched: all heads": {
        "return cache[hook.name]": "pattern[:, 0] = cache[hook.name][:, 0]\nreturn pattern"},
    "only the last position attends as on `others`: every position does": {
        "return cache[hook.name]": "pattern[:, :, -1] = cache[hook.name][:, :, -1]\nreturn pattern"},
    "what the heads write is put in place, values and all: put the patterns": {
        "attn.hook_pattern": "hook_attn_out"},
    "every layer has the last layer's patterns: a function made in a loop sees the loop's last `layer`; bind it, "
    "`layer=layer`": {"return cache[hook.name]": "return cache[names[-1]]"},
    "one text's patterns are put everywhere: each text has its partner": {
        "cache[hook.name]": "cache[hook.name][:1].expand_as(pattern)"},
})


KEPT_MISTAKES = variants(features_kept, {
    "this is a mean: keep one number for each text": seen(lambda got, expected: not isinstance(got, torch.Tensor)
                                                          or got.ndim == 0),
    "the kept ones are replaced: `kept` says which features stay": {
        "torch.where(kept[layer], features, others[layer])": "torch.where(kept[layer], others[layer], features)"},
    "the other features are silenced: they have the activation of the corrupted text": {
        "torch.where(kept[layer], features, others[layer])": "torch.where(kept[layer], features, 0)"},
    "clean and corrupted are swapped in the mixed pass: the text is clean": {
        "transcoders, clean, mix": "transcoders, corrupted, mix"},
    "the kept ones are held at their values on the clean text: they are computed anew in the mixed pass": {
        "mixed = metric(": "values = {}\nrun_features(model, transcoders, clean, values.setdefault)\nmixed = metric(",
        "torch.where(kept[layer], features,": "torch.where(kept[layer], values[layer],"},
    "this steers the corrupted text with the kept ones: here the clean text is read, and the others are replaced": {
        "mixed = metric(": "values = {}\nrun_features(model, transcoders, clean, values.setdefault)\nmixed = metric(",
        "torch.where(kept[layer], features, others[layer])": "torch.where(kept[layer], values[layer], features)",
        "transcoders, clean, mix": "transcoders, corrupted, mix"},
    "each text is divided by its own difference: divide by the mean": {
        "(whole - nothing).mean()": "(whole - nothing)"},
    "the corrupted text's value is not subtracted: 0 is what the corrupted text gives": "mixed / whole.mean()",
    "divided by the clean text's value: the unit is (whole − nothing).mean()": "(mixed - nothing) / whole.mean()",
    "this is what is lost: what is kept is measured from the corrupted text's value":
        "(whole - mixed) / (whole - nothing).mean()",
    "this is in the metric's own units: divide by the mean difference of clean and corrupted": "mixed - nothing",
    "clipped: what is kept may be below 0 or above 1":
        ("((mixed - nothing) / (whole - nothing).mean()).clamp(0, 1)",
         "((mixed - nothing) / (whole - nothing).mean()).clamp(min=0)",
         "((mixed - nothing) / (whole - nothing).mean()).clamp(max=1)"),
})


EXERCISES = [
    Exercise(
        id="12.transcode",
        title="A transcoder",
        reference=transcode,
        check=compare_cases(transcode_cases, TRANSCODE_MISTAKES, keeps_inputs=True),
        hints=(
            "Three steps: pre-activations, the k largest of each token, what these write.",
            "`pre.topk(k, dim=-1)` has `.values` and `.indices`; a zero tensor's `.scatter(-1, indices, values)` puts "
            "them in place.",
            "`torch.zeros_like(pre).scatter(-1, largest.indices, largest.values.relu())` is f; y is "
            "`f @ W_dec + b_dec`.",
        ),
        minutes=6,
        difficulty=1,
    ),
    Exercise(
        id="12.replaced_logits",
        title="Your experiment: transcoders in the place of MLPs",
        reference=replaced_logits,
        check=compare_cases(replaced_cases, REPLACED_MISTAKES, keeps_inputs=True),
        hints=(
            "Two hooks for each layer: one remembers what the MLP reads, the other gives something else in place "
            "of what it writes.",
            "A function made in a loop sees the loop's last `layer`: bind it, `def note(x, hook, layer=layer)`.",
            "The second returns `torch.cat([y[:, :1], transcoders[layer](read[layer])[:, 1:]], dim=1)`.",
        ),
        minutes=12,
        difficulty=2,
    ),
    Exercise(
        id="12.edge",
        title="One edge by hand",
        reference=edge,
        check=compare_cases(edge_cases, EDGE_MISTAKES, loose_scalars=True),
        hints=(
            "Start with a stream that is 0 but for `written` at the source's position, and follow it up to the MLP "
            "that the target belongs to.",
            "The heads of layers source.layer + 1 to target.layer add to it what they gather; `frozen.attention(layer, "
            "x)` also adds a bias, which is what it gives for zeros. Other MLPs add nothing: that is another path.",
            "`x = x + frozen.attention(layer, x) - frozen.attention(layer, nothing)` for each layer; then "
            "`centred(frozen.model, x) / frozen.mlp_scales[target.layer]`, at the target's position, times the column "
            "`W_enc[:, target.index]`.",
        ),
        minutes=15,
        difficulty=3,
    ),
    Exercise(
        id="12.influence",
        title="Influence: a sum over paths",
        reference=influence,
        check=compare_cases(influence_cases, INFLUENCE_MISTAKES, keeps_inputs=True),
        hints=(
            "Divide the size of each edge by the sum of its row. What do paths of one edge bring to each node?",
            "Paths of one edge bring `weights @ A`, those of two `weights @ A @ A`. Nothing flows in a circle, so no "
            "path is longer than the number of nodes.",
            "In a loop over `len(edges)` steps: `flow = flow @ A`, then `found = found + flow`.",
        ),
        minutes=10,
        difficulty=2,
    ),
    Exercise(
        id="12.equally_large",
        title="Your control: nearest in size, at the same place",
        reference=equally_large,
        check=compare_cases(large_cases, LARGE_MISTAKES, keeps_inputs=True),
        hints=(
            "For each chosen node list those that may be its control, then take the nearest.",
            "Free are the nodes at its place that are neither chosen nor taken as a control before.",
            "`min(free, key=lambda other: abs(sizes[other] - sizes[node]).item())`",
        ),
        minutes=8,
        difficulty=2,
    ),
    Exercise(
        id="12.with_patterns_of",
        title="Your experiment: attend as on another text",
        reference=with_patterns_of,
        check=compare_cases(pattern_cases, PATTERN_MISTAKES, keeps_inputs=True),
        hints=(
            "A pass on `others` that remembers all patterns, then a pass on `tokens` in which they are put in place.",
            "The hook is `blocks.{layer}.attn.hook_pattern`, [n, head, query, key]; `run_with_cache(others, "
            "names_filter=names)` keeps just these.",
            "`model.run_with_hooks(tokens, fwd_hooks=[(name, put) for name in names])`, where `put(pattern, hook)` "
            "returns `cache[hook.name]`.",
        ),
        minutes=8,
        difficulty=2,
    ),
    Exercise(
        id="12.features_kept",
        title="Your experiment: what do k features keep?",
        reference=features_kept,
        check=compare_cases(kept_cases, KEPT_MISTAKES, keeps_inputs=True),
        hints=(
            "Three values of the metric, as in lesson 10: on the corrupted text, on the clean one, and on the clean "
            "one with the other features replaced.",
            "`run_features` calls `change(layer, features)`: on the corrupted text let it remember the features and "
            "return them, on the clean one let it mix.",
            "`torch.where(kept[layer], features, others[layer])`, and at the end "
            "`(mixed - nothing) / (whole - nothing).mean()`.",
        ),
        minutes=12,
        difficulty=2,
    ),
]

IN_THE_PACKAGE = {"12.replaced_logits": package_transcoders.replaced_logits, "12.influence": package.influence}
