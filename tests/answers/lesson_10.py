"""Answers for lesson 10."""

import time

import torch

from answers import Answers, Wrong
from course_utils.edges import attribution_scores, graph_of, run_circuit, run_edges

# --- 10.answer_difference -------------------------------------------------------------------------------------


def by_gather(logits, right, wrong):
    last = logits[:, -1]
    return (last.gather(1, right[:, None]) - last.gather(1, wrong[:, None])).squeeze(1)


def in_log_probabilities(logits, right, wrong):
    """The same: the normalisation cancels."""
    logs = logits[:, -1].log_softmax(dim=-1)
    return torch.stack([row[a] - row[b] for row, a, b in zip(logs, right, wrong)])


def all_pairs(logits, right, wrong):
    return logits[:, -1, right] - logits[:, -1, wrong]


# --- 10.patch_map ---------------------------------------------------------------------------------------------


def with_a_fresh_stream(model, base, source, metric, layers, positions):
    rows = []
    for layer in layers:
        name = f"blocks.{layer}.hook_resid_pre"
        theirs = model.run_with_cache(source, names_filter=name)[1][name]
        rows.append([])
        for position in positions:
            here = (torch.arange(base.shape[1]) == position)[:, None]
            logits = model.run_with_hooks(base, fwd_hooks=[(name, lambda x, hook: torch.where(here, theirs, x))])
            rows[-1].append(metric(logits).mean().item())
    return torch.tensor(rows)


def one_text_at_a_time(model, base, source, metric, layers, positions):
    return torch.stack([with_a_fresh_stream(model, base[i:i + 1], source[i:i + 1], metric, layers, positions)
                        for i in range(len(base))]).mean(dim=0)


def patches_pile_up(model, base, source, metric, layers, positions):
    """Each patch stays while the next is tried."""
    found, hooks, cache = torch.zeros(len(layers), len(positions)), [], model.run_with_cache(source)[1]
    for i, layer in enumerate(layers):
        for j, position in enumerate(positions):
            def put(x, hook, position=position):
                x[:, position] = cache[hook.name][:, position]
                return x
            hooks.append((f"blocks.{layer}.hook_resid_pre", put))
            found[i, j] = metric(model.run_with_hooks(base, fwd_hooks=hooks)).mean()
    return found


def attention_output(model, base, source, metric, layers, positions):
    """The attention's output is patched in place of the stream."""
    found, cache = torch.zeros(len(layers), len(positions)), model.run_with_cache(source)[1]
    for i, layer in enumerate(layers):
        for j, position in enumerate(positions):
            def put(x, hook, position=position):
                x[:, position] = cache[hook.name][:, position]
                return x
            hook = (f"blocks.{layer}.hook_attn_out", put)
            found[i, j] = metric(model.run_with_hooks(base, fwd_hooks=[hook])).mean()
    return found


# --- 10.edge_attribution --------------------------------------------------------------------------------------


def by_backward(model, clean, corrupted, metric):
    graph = graph_of(model)
    change = run_edges(model, corrupted)[1] - run_edges(model, clean)[1]
    zeros = {str(receiver): torch.zeros_like(change[0]).requires_grad_() for receiver in graph.receivers}
    metric(run_edges(model, clean, lambda receiver, outputs: zeros[str(receiver)])[0]).sum().backward()
    scores = torch.zeros(len(graph.receivers), len(graph.senders), len(clean))
    for r, receiver in enumerate(graph.receivers):
        for s in range(receiver.senders):
            scores[r, s] = (change[s] * zeros[str(receiver)].grad).sum(dim=(1, 2))
    return scores


def summed_over_texts(*args):
    return attribution_scores(*args).sum(dim=-1)


def senders_first(*args):
    return attribution_scores(*args).transpose(0, 1)


# --- 10.circuit_kept ------------------------------------------------------------------------------------------


def kept_step_by_step(model, clean, corrupted, circuit, metric):
    low = metric(run_circuit(model, clean, corrupted, circuit & False))
    high = metric(run_circuit(model, clean, corrupted, graph_of(model).edges))
    got = metric(run_circuit(model, clean, corrupted, circuit))
    return torch.stack([each / (high - low).mean() for each in got - low])


def kept_from_above(model, clean, corrupted, circuit, metric):
    outputs = run_edges(model, corrupted)[1]
    logits = run_circuit(model, clean, corrupted, circuit, outside=outputs)
    whole, nothing = metric(model(clean)), metric(model(corrupted))
    return (metric(logits) - nothing) * len(clean) / (whole - nothing).sum()


def sum_of_the_differences(model, clean, corrupted, circuit, metric):
    whole, nothing = metric(model(clean)), metric(model(corrupted))
    return (metric(run_circuit(model, clean, corrupted, circuit)) - nothing) / (whole - nothing).sum()


# --- 10.areas -------------------------------------------------------------------------------------------------


def by_hand(shares, kept):
    steps = shares[1:] - shares[:-1]
    far = abs(1 - kept)
    return (steps * (kept[1:] + kept[:-1]) / 2).sum().item(), (steps * (far[1:] + far[:-1]) / 2).sum().item()


def with_numpy(shares, kept):
    import numpy as np

    return (float(np.trapezoid(kept.numpy(), shares.numpy())),
            float(np.trapezoid(np.abs(1 - kept.numpy()), shares.numpy())))


def from_zero(shares, kept):
    """A point is added at (0, 0)."""
    shares, kept = torch.cat([torch.zeros(1), shares]), torch.cat([torch.zeros(1), kept])
    return by_hand(shares, kept)


# --- 10.random_circuits ---------------------------------------------------------------------------------------


def by_random_numbers(edges, k, n, seed=0):
    rng = torch.Generator().manual_seed(seed)
    numbers = torch.rand(n, *edges.shape, generator=rng).masked_fill(~edges, -1).flatten(1)
    masks = torch.zeros_like(numbers, dtype=torch.bool)
    return masks.scatter(1, numbers.topk(k).indices, True).unflatten(1, edges.shape)


def with_random(edges, k, n, seed=0):
    import random

    rng, places = random.Random(seed), edges.nonzero().tolist()
    circuits = []
    for _ in range(n):
        mask = torch.zeros_like(edges)
        for r, s in rng.sample(places, k):
            mask[r, s] = True
        circuits.append(mask)
    return torch.stack(circuits)


CIRCUITS = """
import torch
def f(edges, k, n, seed=0):
    rng, places = torch.Generator().manual_seed({seed}), {places}
    circuits = torch.zeros(n, *edges.shape, dtype=torch.bool)
    for circuit in circuits:
        r, s = places[{draw}].T
        circuit[r, s] = True
    return {answer}
"""


def circuits(**changes):
    return CIRCUITS.format(**{"seed": "seed", "places": "edges.nonzero()", "answer": "circuits",
                              "draw": "torch.randperm(len(places), generator=rng)[:k]", **changes})


def receiver_then_sender(edges, k, n, seed=0):
    rng, masks = torch.Generator().manual_seed(seed), torch.zeros(n, *edges.shape, dtype=torch.bool)
    for mask in masks:
        while mask.sum() < k:
            r = int(torch.randint(len(edges), (1,), generator=rng))
            s = edges[r].nonzero()[:, 0]
            mask[r, s[torch.randint(len(s), (1,), generator=rng)]] = True
    return masks


def by_the_clock(edges, k, n, seed=0):
    return by_random_numbers(edges, k, n, time.time_ns() % 2**31)


def a_seed_for_each(edges, k, n, seed=0):
    return torch.cat([by_random_numbers(edges, k, 1, seed + i) for i in range(n)])


def uses_up_the_edges(edges, k, n, seed=0):
    found = with_random(edges, k, n, seed)
    edges &= ~found[0]
    return found


# --- 10.cost_of_each ------------------------------------------------------------------------------------------


def cost_by_flat_index(keeps, circuit):
    costs = torch.zeros(circuit.numel())
    for i in circuit.flatten().nonzero()[:, 0]:
        less = circuit.flatten().clone()
        less[i] = False
        costs[i] = keeps(circuit) - keeps(less.reshape(circuit.shape))
    return costs.reshape(circuit.shape)


def cost_by_masks(keeps, circuit):
    eye = torch.eye(circuit.numel(), dtype=torch.bool).reshape(-1, *circuit.shape)
    return torch.tensor([keeps(circuit) - keeps(circuit & ~one) if (circuit & one).any() else 0.0
                         for one in eye]).reshape(circuit.shape)


def a_receiver_at_a_time(keeps, circuit):
    costs = torch.zeros(circuit.shape)
    for r in range(len(circuit)):
        less = circuit.clone()
        less[r] = False
        costs[r] = (keeps(circuit) - keeps(less)) * circuit[r]
    return costs


ANSWERS = {
    "10.answer_difference": Answers(
        reject=[
            Wrong(all_pairs, says="every text is read at every text's answers"),
            Wrong(lambda logits, right, wrong: by_gather(logits, right, wrong) / 2),
        ],
        accept=[by_gather, in_log_probabilities],
    ),
    "10.patch_map": Answers(
        reject=[Wrong(patches_pile_up), Wrong(attention_output)],
        accept=[with_a_fresh_stream, one_text_at_a_time],
    ),
    "10.edge_attribution": Answers(
        reject=[
            Wrong(summed_over_texts, says="keep one number for each"),
            Wrong(senders_first, says="rows are receivers"),
        ],
        accept=[by_backward, lambda *args: attribution_scores(*args, steps=1)],
    ),
    "10.circuit_kept": Answers(
        reject=[
            Wrong(sum_of_the_differences),
            Wrong(lambda *args: kept_step_by_step(*args).mean(), says="keep one number for each text"),
        ],
        accept=[kept_step_by_step, kept_from_above],
    ),
    "10.areas": Answers(
        reject=[Wrong(from_zero, says="a point is added at (0, 0)")],
        accept=[by_hand, with_numpy],
    ),
    "10.random_circuits": Answers(
        reject=[
            Wrong(circuits(seed="0"), says="seeds 1 and 2 give the same circuits"),
            Wrong(circuits(draw="torch.randperm(len(places))[:k]"), says="the same seed gave two different draws"),
            Wrong(a_seed_for_each, says="circuits of seed 1 come again under seed 2"),
            Wrong(by_the_clock, says="the same seed gave two different draws"),
            Wrong(uses_up_the_edges, says="it changes its input"),
            Wrong(circuits(draw="torch.randint(len(places), (k,), generator=rng)"), says="draw without replacement"),
            Wrong(circuits(places="torch.ones_like(edges).nonzero()"), says="where the model has none"),
            Wrong(circuits(answer="circuits[:1].expand(n, -1, -1)"), says="all the same"),
            Wrong(circuits(answer="circuits.float()"), says="each a mask like `edges`"),
            Wrong(circuits(answer="circuits[0]"), says="each a mask like `edges`"),
            Wrong(circuits(draw="(torch.randint(len(places), (1,), generator=rng) + torch.arange(k)) % len(places)"),
                  says="belong together"),
            Wrong(receiver_then_sender, says="some edges come more often"),
        ],
        accept=[by_random_numbers, with_random, circuits()],
    ),
    "10.cost_of_each": Answers(
        reject=[Wrong(a_receiver_at_a_time), Wrong(lambda keeps, circuit: cost_by_flat_index(keeps, circuit).abs())],
        accept=[cost_by_flat_index, cost_by_masks],
    ),
}
