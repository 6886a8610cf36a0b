"""Exercises of lesson 10: is a circuit faithful?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from course_utils import edges as package
from course_utils.edges import graph_of, run_circuit, run_edges
from course_utils.exercises.checking import Case, Exercise, compare_cases, property_check, require
from course_utils.exercises.checks.shared import drawn, grouped_query_model, random_logits, random_model, random_tokens
from course_utils.exercises.mistakes import seen, variants

Metric = Callable[[Float[Tensor, "n pos vocab"]], Float[Tensor, "n"]]

# --- the course's answers -----------------------------------------------------------------------------------------


def answer_difference(
    logits: Float[Tensor, "n pos vocab"], right: Int[Tensor, "n"], wrong: Int[Tensor, "n"]
) -> Float[Tensor, "n"]:
    """How far the right answer's logit lies above the wrong one's, at the last position of each text."""
    text = torch.arange(len(right))
    return logits[text, -1, right] - logits[text, -1, wrong]


def patch_map(
    model: TransformerBridge, base: Int[Tensor, "n pos"], source: Int[Tensor, "n pos"], metric: Metric,
    layers: list[int], positions: list[int]
) -> Float[Tensor, "layer position"]:
    """The mean metric of passes on `base` in which one layer reads, at one position, the stream of `source`."""
    _, cache = model.run_with_cache(source)
    found = torch.zeros(len(layers), len(positions))
    for i, layer in enumerate(layers):
        name = f"blocks.{layer}.hook_resid_pre"
        for j, position in enumerate(positions):
            def put(stream, hook):
                stream[:, position] = cache[name][:, position]
                return stream
            logits = model.run_with_hooks(base, fwd_hooks=[(name, put)])
            found[i, j] = metric(logits).mean()
    return found


def edge_attribution(
    model: TransformerBridge, clean: Int[Tensor, "n pos"], corrupted: Int[Tensor, "n pos"], metric: Metric
) -> Float[Tensor, "receiver sender n"]:
    """For every edge: what the sender's output changes by, times the metric's slope at what the receiver reads."""
    graph = graph_of(model)
    own, other = run_edges(model, clean)[1], run_edges(model, corrupted)[1]             # [sender, n, pos, d_model]
    nothing = {receiver: torch.zeros_like(own[0], requires_grad=True) for receiver in graph.receivers}
    logits, _ = run_edges(model, clean, lambda receiver, outputs: nothing[receiver])
    slopes = torch.autograd.grad(metric(logits).sum(), list(nothing.values()))          # one for each receiver
    scores = torch.einsum("rnpd,snpd->rsn", torch.stack(slopes), other - own)
    return scores * graph.edges[:, :, None].to(scores)


def circuit_kept(
    model: TransformerBridge, clean: Int[Tensor, "n pos"], corrupted: Int[Tensor, "n pos"],
    circuit: Bool[Tensor, "receiver sender"], metric: Metric
) -> Float[Tensor, "n"]:
    """What each text keeps when all edges outside the circuit carry the corrupted text's values.

    0: no more than the corrupted text. 1: what the whole model adds to that, on average over texts.
    """
    whole, nothing = metric(model(clean)), metric(model(corrupted))
    kept = metric(run_circuit(model, clean, corrupted, circuit))
    return (kept - nothing) / (whole - nothing).mean()


def areas(shares: Float[Tensor, "k"], kept: Float[Tensor, "k"]) -> tuple[float, float]:
    """CPR and CMD: the areas under what is kept and under |1 − kept|, over the share of edges."""
    return torch.trapezoid(kept, shares).item(), torch.trapezoid((1 - kept).abs(), shares).item()


def random_circuits(
    edges: Bool[Tensor, "receiver sender"], k: int, n: int, seed: int = 0
) -> Bool[Tensor, "n receiver sender"]:
    """n circuits of k of the model's edges each, every set of k equally likely."""
    rng, places = torch.Generator().manual_seed(seed), edges.nonzero()
    circuits = torch.zeros(n, *edges.shape, dtype=torch.bool)
    for circuit in circuits:
        receivers, senders = places[torch.randperm(len(places), generator=rng)[:k]].T
        circuit[receivers, senders] = True
    return circuits


def cost_of_each(
    keeps: Callable[[Bool[Tensor, "receiver sender"]], float], circuit: Bool[Tensor, "receiver sender"]
) -> Float[Tensor, "receiver sender"]:
    """How much less the circuit keeps without each of its edges alone; 0 where it has no edge."""
    costs, whole = torch.zeros(circuit.shape), keeps(circuit)
    for receiver, sender in circuit.nonzero().tolist():
        without = circuit.clone()
        without[receiver, sender] = False
        costs[receiver, sender] = whole - keeps(without)
    return costs


# --- inputs -------------------------------------------------------------------------------------------------------


def last_difference(logits):
    """Logit of token 4 minus that of token 9, at the last position."""
    return logits[:, -1, 4] - logits[:, -1, 9]


def last_log_probability(logits):
    """Log-probability of token 3 at the last position."""
    return logits[:, -1].log_softmax(dim=-1)[:, 3]


def pair(n: int, length: int, at: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Texts, and the same with another token at one place."""
    clean = random_tokens(n, length, seed=seed)
    corrupted = clean.clone()
    corrupted[:, at] = 1 + (clean[:, at] + 7) % 38
    return clean, corrupted


def answer_cases() -> list[Case]:
    return [
        Case(random_logits(3, 4, 9), torch.tensor([1, 7, 4]), torch.tensor([2, 0, 8]), label="3 texts of 4 tokens"),
        Case(random_logits(2, 6, 12, seed=1) - 5, torch.tensor([11, 3]), torch.tensor([3, 11]), label="2 texts of 6"),
    ]


def map_cases() -> list[Case]:
    def case(model, n, length, at, metric, layers, positions, label):
        base, source = pair(n, length, at, seed=length)
        return Case(model, base, source, metric, layers, positions, label=label)
    return [
        case(random_model(), 3, 6, 2, last_difference, [0, 2], [1, 2, 4, 5], "random model, layers 0 and 2"),
        case(random_model(), 2, 5, 1, last_log_probability, [2, 1], [4, 1], "another metric, layers 2 and 1"),
        case(grouped_query_model(), 2, 7, 3, last_difference, [1], [3, 6], "grouped queries, layer 1"),
    ]


def edge_cases() -> list[Case]:
    return [
        Case(random_model(), *pair(3, 6, 2), last_difference, label="random model, 3 pairs of 6 tokens"),
        Case(grouped_query_model(), *pair(2, 5, 1, seed=3), last_log_probability, label="grouped queries"),
    ]


def some_edges(model, share: float, seed: int) -> Tensor:
    edges = graph_of(model).edges
    return edges & (torch.rand(edges.shape, generator=torch.Generator().manual_seed(seed)) < share)


def kept_cases() -> list[Case]:
    return [
        Case(random_model(), *pair(3, 6, 2), some_edges(random_model(), 0.7, 0), last_difference,
             label="random model, about 0.7 of the edges"),
        Case(random_model(), *pair(4, 7, 3, seed=5), some_edges(random_model(), 0.4, 1), last_log_probability,
             label="about 0.4 of them, another metric"),
        Case(grouped_query_model(), *pair(2, 5, 1, seed=3), some_edges(grouped_query_model(), 0.8, 2), last_difference,
             label="grouped queries"),
    ]


def area_cases() -> list[Case]:
    return [
        Case(torch.tensor([0.01, 0.05, 0.2, 0.5, 1.0]), torch.tensor([0.1, 0.4, 0.9, 1.1, 1.0]), label="5 circuits"),
        Case(torch.tensor([0.0, 0.1, 0.3, 1.0]), torch.tensor([-0.2, 1.4, 1.2, 1.0]), label="one does worse than none"),
    ]


def cost_cases() -> list[Case]:
    def keeps_of(weights: Tensor, pairs: Tensor) -> Callable[[Tensor], float]:
        def keeps(circuit: Tensor) -> float:
            x = circuit.to(weights)
            return (weights * x).sum().item() + ((x @ x.T) * pairs).sum().item()        # edges need each other, too
        return keeps
    return [
        Case(keeps_of(drawn(3, 4), drawn(3, 3, seed=1)), drawn(3, 4, seed=2) > -0.3, label="a circuit in 3 × 4"),
        Case(keeps_of(drawn(4, 3, seed=3), 0 * drawn(4, 4)), drawn(4, 3, seed=4) > 0.2, label="one in 4 × 3"),
    ]


# --- known mistakes -----------------------------------------------------------------------------------------------

ANSWER_MISTAKES = variants(answer_difference, {
    "right and wrong are swapped: the right answer's logit minus the wrong one's":
        "logits[text, -1, wrong] - logits[text, -1, right]",
    "another position is read: the answer is predicted at the last one, −1":
        ({"logits[text, -1, right] - logits[text, -1, wrong]": "logits[text, -2, right] - logits[text, -2, wrong]"},
         {"logits[text, -1, right] - logits[text, -1, wrong]": "logits[text, 0, right] - logits[text, 0, wrong]"}),
    "this is a mean over positions: the answer is predicted at the last one, −1":
        "logits.mean(1)[text, right] - logits.mean(1)[text, wrong]",
    "this is a sum over positions: the answer is predicted at the last one, −1":
        "logits.sum(1)[text, right] - logits.sum(1)[text, wrong]",
    "this is a mean over texts: keep one number for each": {
        "logits[text, -1, right] - logits[text, -1, wrong]":
        "(logits[text, -1, right] - logits[text, -1, wrong]).mean()"},
    "every text is read at every text's answers, [n, n]: each has an answer of its own":
        seen(lambda got, expected: got.ndim == 2),
    "this is a difference of probabilities: take logits":
        "logits.softmax(-1)[text, -1, right] - logits.softmax(-1)[text, -1, wrong]",
    "this is the right answer's logit alone: subtract the wrong one's": "logits[text, -1, right]",
    "this is the right answer's log-probability: subtract logits": "logits.log_softmax(-1)[text, -1, right]",
    "this is the size without its sign: below 0 the wrong answer is preferred":
        "(logits[text, -1, right] - logits[text, -1, wrong]).abs()",
})


PUT = "stream[:, position] = cache[name][:, position]"
MAP_MISTAKES = variants(patch_map, {
    "base and source are swapped: the model reads `base`, and the stream that is put there is that of `source`":
        {"run_with_cache(source)": "run_with_cache(base)", "run_with_hooks(base,": "run_with_hooks(source,"},
    "nothing is patched: are these passes on `base` without a hook, or is its own stream put back?":
        ({"run_with_cache(source)": "run_with_cache(base)"}, {PUT: "pass"}),
    "the whole stream is put there: patch one position": {PUT: "stream[:] = cache[name]"},
    "all positions from the patched one on are changed: patch one": {PUT: PUT.replace("position]", "position:]")},
    "the patch stands at the wrong position: `positions` says where, not the number of the column":
        {PUT: PUT.replace("position", "j")},
    "all positions up to the patched one are changed: patch one": {PUT: PUT.replace("position]", ":position + 1]")},
    "the patch is in the wrong layer: `layers` says which, not the number of the row":
        {"blocks.{layer}": "blocks.{i}"},
    "the stream comes from the wrong layer: `layers` says which, not the number of the row":
        {PUT: 'stream[:, position] = cache[f"blocks.{i}.hook_resid_pre"][:, position]'},
    "this is the stream after the layer: it reads `hook_resid_pre`":
        ({"hook_resid_pre": "hook_resid_post"}, {"hook_resid_pre": "hook_resid_mid"}),
    "only the first text is patched": {PUT: "stream[:1, position] = cache[name][:1, position]"},
    "the change is given, not the metric: nothing is subtracted here":
        {"metric(logits).mean()": "metric(logits).mean() - metric(model(base)).mean()"},
    "this is the sum over texts: take the mean": {"metric(logits).mean()": "metric(logits).sum()"},
    "this is one text's number: take the mean over texts": {"metric(logits).mean()": "metric(logits)[0]"},
    "rows and columns are swapped: [layer, position]": "found.T",
})


CHANGE, EDGES_ONLY = "other - own", " * graph.edges[:, :, None].to(scores)"
EDGE_MISTAKES = variants(edge_attribution, {
    "the sign is wrong: an edge changes from clean to corrupted, so it is corrupted − clean": {CHANGE: "own - other"},
    "the slope is that of the corrupted pass: estimate the change from the clean one":
        {"run_edges(model, clean, lambda": "run_edges(model, corrupted, lambda"},
    "there are scores where there is no edge: set them to 0 with `graph.edges`": {EDGES_ONLY: ""},
    "this is the slope times the corrupted output: times the change, corrupted − clean": {CHANGE: "other"},
    "this is the slope times the sender's own output: times the change, corrupted − clean": (
        {CHANGE: "own"}, {CHANGE: "-own"}),
    "the slope is that of a mean over texts, so all is n times too small: differentiate the sum":
        {"metric(logits).sum()": "metric(logits).mean()"},
    "these are means over positions: sum over positions and d_model": {EDGES_ONLY: EDGES_ONLY + " / own.shape[2]"},
    "only the last position is counted: sum over all": {
        '"rnpd,snpd->rsn", torch.stack(slopes), other - own':
        '"rnd,snd->rsn", torch.stack(slopes)[:, :, -1], (other - own)[:, :, -1]'},
    "these are sizes: keep the sign": (f"scores.abs(){EDGES_ONLY}", "scores.abs()"),
    "a size is taken before the sum: keep the sign of every term": (
        {'torch.einsum("rnpd,snpd->rsn", torch.stack(slopes), other - own)':
         'torch.einsum("rnpd,snpd->rsnp", torch.stack(slopes), other - own).abs().sum(-1)'},
        {"torch.stack(slopes), other - own": "torch.stack(slopes).abs(), (other - own).abs()"},
        {"torch.stack(slopes), other - own": "torch.stack(slopes), (other - own).abs()"},
        {"torch.stack(slopes), other - own": "torch.stack(slopes).abs(), other - own"}),
    "summed or averaged over texts: keep one number for each, [receiver, sender, n]":
        seen(lambda got, expected: got.ndim == 2),
    "transposed: rows are receivers, columns senders": seen(
        lambda got, expected: got.ndim == 3 and got.shape == expected.transpose(0, 1).shape != expected.shape),
})


KEPT_MISTAKES = variants(circuit_kept, {
    "this is a mean: keep one number for each text": seen(lambda got, expected: not isinstance(got, torch.Tensor)
                                                          or got.ndim == 0),
    "each text is divided by its own difference: where that is near 0 it outweighs all others. Divide by the mean":
        "(kept - nothing) / (whole - nothing)",
    "the corrupted text's value is not subtracted: 0 is what the corrupted text gives":
        ("kept / whole.mean()", "kept / whole", "kept / (whole - nothing).mean()", "kept / (whole - nothing)"),
    "divided by the clean text's value: the unit is what it adds to the corrupted text's, (whole − nothing).mean()":
        ("(kept - nothing) / whole.mean()", "(kept - nothing) / whole"),
    "this is what is lost: what is kept is measured from the corrupted text's value":
        "(whole - kept) / (whole - nothing).mean()",
    "the other edges are kept: `circuit` says which edges stay clean":
        {"corrupted, circuit)": "corrupted, graph_of(model).edges & ~circuit)"},
    "clean and corrupted are swapped in the circuit's pass":
        {"run_circuit(model, clean, corrupted,": "run_circuit(model, corrupted, clean,"},
    "this is in the metric's own units: divide by the mean difference of clean and corrupted": "kept - nothing",
    "this is the metric itself: subtract that of the corrupted text, divide by the mean difference": "kept",
    "clipped: what is kept may be below 0 or above 1": tuple(
        f"((kept - nothing) / (whole - nothing).mean()).clamp({limits})" for limits in ("0, 1", "min=0", "max=1")),
    "the sign is wrong": "(nothing - kept) / (whole - nothing).mean()",
})


AREA_MISTAKES = variants(areas, {
    "the two are swapped: (CPR, CMD)":
        "torch.trapezoid((1 - kept).abs(), shares).item(), torch.trapezoid(kept, shares).item()",
    "what lies above 1 is subtracted: a distance from 1 counts on both sides, |1 − kept|":
        {"(1 - kept).abs()": "1 - kept"},
    "the absolute value is taken of the area, not of the distance":
        "torch.trapezoid(kept, shares).item(), abs(torch.trapezoid(1 - kept, shares).item())",
    "this is the exact area between the lines and 1: take the trapezoid rule on |1 − kept| at the given points":
        "a, b, gap = (1 - kept)[:-1], (1 - kept)[1:], shares.diff()\n"
        "crossed = (a ** 2 + b ** 2) / (2 * (a.abs() + b.abs()).clamp(min=1e-12))\n"
        "far = torch.where(a * b < 0, crossed, (a + b).abs() / 2)\n"
        "return torch.trapezoid(kept, shares).item(), (far * gap).sum().item()",
    "clamped: what is kept may be below 0 or above 1, and counts as it is": tuple(
        f"torch.trapezoid({cpr}, shares).item(), torch.trapezoid({cmd}, shares).item()" for cpr, cmd in (
            ("kept.clamp(0, 1)", "1 - kept.clamp(0, 1)"), ("kept.clamp(0, 1)", "(1 - kept).abs()"),
            ("kept.clamp(min=0)", "(1 - kept).abs()"), ("kept.clamp(max=1)", "(1 - kept).abs()"),
            ("kept.clamp(min=0)", "(1 - kept.clamp(min=0)).abs()"), ("kept.clamp(max=1)", "1 - kept.clamp(max=1)"),
            ("kept", "1 - kept.clamp(0, 1)"), ("kept", "(1 - kept).clamp(min=0)"),
            ("kept", "(1 - kept).abs().clamp(max=1)"))),
    "divided by the range of the shares: these are areas, not means": (
        "torch.trapezoid(kept, shares).item() / (shares[-1] - shares[0]).item(), "
        "torch.trapezoid((1 - kept).abs(), shares).item() / (shares[-1] - shares[0]).item()"),
    "squared: the distance is |1 − kept|": {"(1 - kept).abs()": "(1 - kept) ** 2"},
    "every circuit counts alike: the area is over the share of edges, and the steps differ": (
        "kept.mean().item(), (1 - kept).abs().mean().item()",
        "torch.trapezoid(kept).item(), torch.trapezoid((1 - kept).abs()).item()"),
    "these are rectangles: join the points by straight lines, `torch.trapezoid`": (
        "(kept[1:] * shares.diff()).sum().item(), ((1 - kept).abs()[1:] * shares.diff()).sum().item()",
        "(kept[:-1] * shares.diff()).sum().item(), ((1 - kept).abs()[:-1] * shares.diff()).sum().item()"),
    "shares and kept are swapped: `torch.trapezoid(y, x)`":
        "torch.trapezoid(shares, kept).item(), torch.trapezoid(shares, (1 - kept).abs()).item()",
    "the axis is logarithmic: the area is over the share itself":
        "x = shares.clamp(min=1e-3).log()\n"
        "return torch.trapezoid(kept, x).item(), torch.trapezoid((1 - kept).abs(), x).item()",
    "a point is added at (0, 0): the areas are over the shares that are given":
        "x, y = (torch.cat([torch.zeros(1), each]) for each in (shares, kept))\n"
        "return torch.trapezoid(y, x).item(), torch.trapezoid((1 - y).abs(), x).item()",
    "the two add up to 1 here: CMD is not 1 − CPR": "(cpr := torch.trapezoid(kept, shares).item()), 1 - cpr",
})


COST_MISTAKES = variants(cost_of_each, {
    "the sign is wrong: what the circuit keeps, minus what it keeps without the edge":
        {"whole - keeps(without)": "keeps(without) - whole"},
    "edges that were removed stay away: start from the whole circuit each time": {
        "without = circuit.clone()": "pass", "costs, whole = torch.zeros(circuit.shape), keeps(circuit)":
        "costs, whole, without = torch.zeros(circuit.shape), keeps(circuit), circuit.clone()"},
    "this is what is kept without the edge: subtract it from what the circuit keeps":
        {"whole - keeps(without)": "keeps(without)"},
    "this is what the edge keeps alone: remove it from the circuit":
        {"whole - keeps(without)": "keeps(circuit & ~without)"},
    "what each removal costs on top of those before it: compare with the whole circuit each time": {
        "without = circuit.clone()": "before = keeps(without)", "whole - keeps(without)": "before - keeps(without)",
        "costs, whole = torch.zeros(circuit.shape), keeps(circuit)":
        "costs, without = torch.zeros(circuit.shape), circuit.clone()"},
    "below 0 is cut off: without an edge a circuit may keep more":
        {"whole - keeps(without)": "max(whole - keeps(without), 0)"},
    "relative to what the circuit keeps: give the difference itself":
        {"whole - keeps(without)": "(whole - keeps(without)) / whole"},
    "edges outside the circuit are tried as well: their cost is 0": {
        "circuit.nonzero()": "torch.ones_like(circuit).nonzero()",
        "without[receiver, sender] = False": "without[receiver, sender] ^= True"},
    "this is compared with all edges: compare with the circuit":
        {"keeps(circuit)": "keeps(torch.ones_like(circuit))"},
})


CONTROL_SAYS = {
    "shape": "n circuits are wanted, each a mask like `edges`: bool [n, receiver, sender]",
    "outside": "there is an edge where the model has none: draw among `edges.nonzero()`",
    "number": "a circuit does not have k edges: draw without replacement",
    "same": "the n circuits are all the same: draw each anew",
    "seed": "the same seed gave two different draws: use a generator of your own, made from `seed`",
    "again": "circuits of seed 1 come again under seed 2: make one generator from `seed`, before the loop",
    "fixed": "seeds 1 and 2 give the same circuits: the draw does not depend on `seed`",
    "uneven": "some edges come more often than others: draw from the list of all edges, not first a receiver and then "
              "a sender",
    "together": "the edges of a circuit belong together (they are neighbours in the list, say): draw every edge anew",
    "input": "it changes its input: work on a copy (`.clone()`)",
}


@property_check(mistakes=tuple(CONTROL_SAYS.values()))
def random_circuits_check(attempt):
    """circuits of 5 of 14 edges; seeds; 800 circuits of 2 edges: every edge, and every two, equally often"""
    edges = torch.arange(6) < torch.tensor([1, 1, 3, 3, 6])[:, None]                    # 14 edges in 5 × 6
    draw = _masks(attempt, edges)
    given = edges.clone()
    circuits = draw(5, 4, 1)
    require(torch.equal(edges, given), CONTROL_SAYS["input"])
    require(circuits.shape == (4, 5, 6) and circuits.dtype == torch.bool, CONTROL_SAYS["shape"], got=circuits)
    require(not (circuits & ~edges).any(), CONTROL_SAYS["outside"], got=circuits[0].nonzero().tolist())
    sizes = circuits.sum(dim=(1, 2)).tolist()
    require(sizes == [5] * 4, CONTROL_SAYS["number"], got=sizes, expected=[5] * 4)
    require(len({tuple(each.flatten().tolist()) for each in circuits}) > 1, CONTROL_SAYS["same"])
    require(torch.equal(draw(5, 4, 1, _stream=1), circuits), CONTROL_SAYS["seed"])
    others = draw(5, 4, 2)
    require(not torch.equal(others, circuits), CONTROL_SAYS["fixed"])
    require((others[:, None] == circuits).all(dim=(2, 3)).sum() < 2, CONTROL_SAYS["again"])      # of 2002 circuits
    many = draw(2, 800, 3)
    counts = many[:, edges].sum(dim=0).double()                                         # 800 · 2 / 14 = 114 for each
    unevenness = ((counts - 1600 / 14) ** 2 / (1600 / 14)).sum()
    require(unevenness < 45, CONTROL_SAYS["uneven"], got=counts.tolist(), expected="each about 114 times")
    couples = Counter(tuple(each[edges].nonzero().flatten().tolist()) for each in many)
    require(len(couples) > 85, CONTROL_SAYS["together"], got=f"{len(couples)} different couples", expected="about 91")


def _masks(attempt, edges):
    return lambda k, n, seed, **stream: torch.as_tensor(attempt(edges, k, n, seed, **stream)).cpu()


EXERCISES = [
    Exercise(
        id="10.answer_difference",
        title="The number to watch",
        reference=answer_difference,
        check=compare_cases(answer_cases, ANSWER_MISTAKES, keeps_inputs=True),
        hints=(
            "Each text has its own two answers. What picks, for text i, the entry `right[i]` of its last position?",
            "Index with two tensors of one length: `logits[torch.arange(n), -1, right]` is one number for each text.",
            "`logits[text, -1, right] - logits[text, -1, wrong]`, with `text = torch.arange(len(right))`.",
        ),
        minutes=4,
        difficulty=1,
    ),
    Exercise(
        id="10.patch_map",
        title="Your experiment: where does the fact stand?",
        reference=patch_map,
        check=compare_cases(map_cases, MAP_MISTAKES, keeps_inputs=True),
        hints=(
            "Run `source` once with a cache. Then a pass on `base` for each layer and position, with a hook that puts "
            "one position of the remembered stream in place.",
            "The hook's name is `blocks.{layer}.hook_resid_pre`; the function gets (stream, hook), sets "
            "`stream[:, position]` and returns the stream.",
            "`stream[:, position] = cache[name][:, position]`, then "
            "`found[i, j] = metric(model.run_with_hooks(base, fwd_hooks=[(name, put)])).mean()`.",
        ),
        minutes=12,
        difficulty=2,
    ),
    Exercise(
        id="10.edge_attribution",
        title="All edges from one gradient",
        reference=edge_attribution,
        check=compare_cases(edge_cases, EDGE_MISTAKES, keeps_inputs=True),
        hints=(
            "Add a tensor of zeros, with gradient, to what each receiver reads: nothing changes, and the metric's "
            "gradient at these zeros is its slope at each receiver's input.",
            "`run_edges(model, clean, added)` calls `added(receiver, outputs)` for each receiver: give it that "
            "receiver's zeros. `torch.autograd.grad(metric(logits).sum(), list_of_zeros)` gives all slopes.",
            "`torch.einsum(\"rnpd,snpd->rsn\", torch.stack(slopes), other - own)`, where own and other are "
            "`run_edges(…)[1]` on both texts; then times `graph.edges[:, :, None]`.",
        ),
        minutes=18,
        difficulty=3,
    ),
    Exercise(
        id="10.circuit_kept",
        title="Your experiment: what does a circuit keep?",
        reference=circuit_kept,
        check=compare_cases(kept_cases, KEPT_MISTAKES, keeps_inputs=True),
        hints=(
            "Three passes: the model on clean, the model on corrupted, and `run_circuit`.",
            "0 is what the corrupted text gives, 1 what the clean one gives, on average.",
            "`(kept - nothing) / (whole - nothing).mean()`",
        ),
        minutes=8,
        difficulty=2,
    ),
    Exercise(
        id="10.random_circuits",
        title="The control: equally many edges",
        reference=random_circuits,
        check=random_circuits_check,
        hints=(
            "`edges.nonzero()` lists the model's edges, one (receiver, sender) a row.",
            "`torch.randperm(number, generator=rng)[:k]` picks k rows without replacement; make `rng` from `seed` "
            "once, before the loop.",
            "`receivers, senders = places[torch.randperm(len(places), generator=rng)[:k]].T`, then "
            "`circuit[receivers, senders] = True`.",
        ),
        minutes=8,
        difficulty=2,
    ),
    Exercise(
        id="10.areas",
        title="Two areas",
        reference=areas,
        check=compare_cases(area_cases, AREA_MISTAKES, keeps_inputs=True, loose_scalars=True),
        hints=(
            "`torch.trapezoid(y, x)` is the area under straight lines through the points.",
            "CPR: y is what is kept. CMD: y is its distance from 1, which is positive on both sides.",
            "`torch.trapezoid((1 - kept).abs(), shares).item()` is the second.",
        ),
        minutes=4,
        difficulty=1,
    ),
    Exercise(
        id="10.cost_of_each",
        title="Your experiment: is every edge needed?",
        reference=cost_of_each,
        check=compare_cases(cost_cases, COST_MISTAKES, keeps_inputs=True),
        hints=(
            "One call of `keeps` for the whole circuit, and one for each of its edges.",
            "`circuit.nonzero().tolist()` lists the edges; remove one from a `circuit.clone()`.",
            "`costs[receiver, sender] = whole - keeps(without)`",
        ),
        minutes=6,
        difficulty=2,
    ),
]

IN_THE_PACKAGE = {"10.edge_attribution": package.attribution_scores}
