"""Edges: what one part of a model reads of another, changed, scored, and put together to a circuit.

A part's input is the sum of what all parts before it wrote (Elhage et al., 2021). An *edge* is one term of such a sum:
what the receiver reads of the sender. Two texts that differ in one fact, run side by side, give every edge two values,
clean and corrupted, and an edge matters if giving it the other text's value changes the answer.

Senders: the embedding, each head, each MLP. Receivers: the queries, keys and values of each head (keys and values that
several heads share are one receiver), each MLP, the logits. Inside the model nothing else changes: what comes after the
receiver is computed anew from what it now reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import groupby, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from course_utils.passes import CleanRun, Keeper, in_short, over_batches, require_plain_blocks

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Metric = Callable[[Float[Tensor, "batch pos vocab"]], Float[Tensor, "batch"]]
Added = Callable[["Receiver", list[Tensor]], Float[Tensor, "batch pos d_model"]]    # (receiver, outputs so far)
LOGITS_AT_ONCE = 2**26      # numbers in the logits of the passes that run together
VECTORS_AT_ONCE = 2048      # residual vectors in such passes: more only leave the processor's cache
SLOPES_AT_ONCE = 2**16      # residual vectors with a slope, one for each receiver and position, in one pass


@dataclass(frozen=True)
class Receiver:
    """One input: of a head's queries, keys or values (`part` "q", "k", "v"), of an MLP ("mlp") or of the logits."""

    part: str
    layer: int
    head: int = 0
    senders: int = 0        # it reads the first so many

    def __str__(self) -> str:
        names = {"mlp": f"mlp {self.layer}", "logits": "logits"}
        return names.get(self.part, f"{self.layer}.{self.head}.{self.part}")


@dataclass(frozen=True)
class Graph:
    """The parts of a model in the order in which they are computed, and who can read whom."""

    senders: tuple[str, ...]
    receivers: tuple[Receiver, ...]

    @property
    def edges(self) -> Bool[Tensor, "receiver sender"]:
        """Where there is an edge: the sender is computed before the receiver."""
        order = torch.arange(len(self.senders))
        return torch.stack([order < receiver.senders for receiver in self.receivers])


def graph_of(model: TransformerBridge) -> Graph:
    """The graph of a model whose blocks add what their heads and their MLP write, each read through a norm of its own.

    Raises:
        NotForThisModel: for other blocks: one norm for both, or outputs that are normed before they are added.
    """
    require_plain_blocks(model, "a graph of edges", "logits", "own")
    senders, receivers = ["embed"], []
    for layer, block in enumerate(model.blocks):
        before = len(senders)
        for part in "qkv":
            heads = len(getattr(block.attn, f"W_{part.upper()}"))
            receivers += [Receiver(part, layer, head, before) for head in range(heads)]
        senders += [f"{layer}.{head}" for head in range(model.cfg.n_heads)]
        receivers.append(Receiver("mlp", layer, senders=before if model.cfg.parallel_attn_mlp else len(senders)))
        senders.append(f"mlp {layer}")
    receivers.append(Receiver("logits", model.cfg.n_layers, senders=len(senders)))
    return Graph(tuple(senders), tuple(receivers))


# --- one pass in which every part reads its own input -----------------------------------------------------------------


def run_edges(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], added: Added | None = None,
    embedded: Float[Tensor, "batch pos d_model"] | None = None,
) -> tuple[Float[Tensor, "batch pos vocab"], Float[Tensor, "sender batch pos d_model"]]:
    """Logits, and what each sender wrote, of a pass in which `added(receiver, outputs so far)` changes what is read.

    Only that receiver reads it: the residual stream stays as it is.

    Args:
        added: what is added to a receiver's input; None: nothing.
        embedded: what takes the embedding's place, positions included.
    """
    graph = graph_of(model)
    outputs: list[Tensor] = []
    hooks: list[tuple[str, Callable]] = [
        ("blocks.0.hook_resid_pre", lambda x, hook: _noted(outputs, x if embedded is None else embedded))]
    for layer in range(model.cfg.n_layers):
        hooks += _layer_hooks(model, layer, outputs)
    if added:
        for receiver in graph.receivers:
            hooks += _reading_hooks(model, receiver, partial(added, receiver, outputs))
    logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
    return logits, torch.stack(outputs)


def _noted(outputs: list[Tensor], value: Tensor) -> Tensor:
    outputs.append(value)
    return value


def _layer_hooks(model: TransformerBridge, layer: int, outputs: list[Tensor]) -> list[tuple[str, Callable]]:
    """Hooks that note what each head of a layer and its MLP write."""
    W_O = model.blocks[layer].attn.W_O                                          # [head, d_head, d_model]

    def note_heads(z, hook):
        outputs.extend(torch.einsum("bphe,hed->hbpd", z, W_O))

    return [(f"blocks.{layer}.attn.hook_z", note_heads),
            (f"blocks.{layer}.hook_mlp_out", lambda out, hook: _noted(outputs, out))]


def _reading_hooks(
    model: TransformerBridge, receiver: Receiver, added: Callable[[], Tensor], rows: slice = slice(None)
) -> list[tuple[str, Callable]]:
    """Hooks that let one receiver read its input with something added to the last positions, in some rows."""
    if receiver.part in ("mlp", "logits"):
        norm = "ln_final" if receiver.part == "logits" else f"blocks.{receiver.layer}.ln2"
        return [(f"{norm}.hook_in", lambda x, hook: _with_rows(x, rows, _sum_at_the_end(x[rows], added())))]
    stream: list[Tensor] = []
    block, part = model.blocks[receiver.layer], receiver.part.upper()
    W, b = getattr(block.attn, f"W_{part}")[receiver.head], getattr(block.attn, f"b_{part}", None)

    def read(values, hook):                                                     # [batch, pos, head, d_head]
        own = block.ln1(_sum_at_the_end(stream.pop(), added())) @ W
        own = own if b is None else own + b[receiver.head]
        values = values.clone() if torch.is_grad_enabled() else values          # a copy for each receiver takes time
        values[rows, :, receiver.head] = own
        return values

    return [(f"blocks.{receiver.layer}.hook_resid_pre", lambda x, hook: stream.append(x[rows])),
            (f"blocks.{receiver.layer}.attn.hook_{receiver.part}", read)]


def _sum_at_the_end(x: Float[Tensor, "row pos d"], added: Float[Tensor, "row last d"]) -> Float[Tensor, "row pos d"]:
    """x, with something added to its last positions."""
    return x + F.pad(added, (0, 0, x.shape[1] - added.shape[1], 0))


def _with_rows(x: Float[Tensor, "row ..."], rows: slice, some: Float[Tensor, "some ..."]) -> Float[Tensor, "row ..."]:
    """x, with some of its rows in place of those that are there."""
    first, end, _ = rows.indices(len(x))
    return torch.cat([x[:first], some, x[end:]])


# --- scores of single edges -------------------------------------------------------------------------------------------


@torch.no_grad()
def exact_scores(
    model: TransformerBridge, clean: Int[Tensor, "batch pos"], corrupted: Int[Tensor, "batch pos"], metric: Metric, *,
    by_position: bool = False, folder: str | Path | None = None,
) -> Float[Tensor, "receiver sender *pos batch"]:
    """How much the metric changes when one edge alone carries what it carries on the corrupted text; 0 where none is.

    The edges into a layer are tried together, each as rows of one batch, from that layer and from the first position
    on where the texts differ. What every sender writes in every text exists at once (GPT-2 small: half a megabyte for
    each token), so give it some of many texts at a time.

    Args:
        metric: logits -> one number for each text, such as a difference of two logits at the last position.
        by_position: each edge at each position by itself, that is, what the receiver reads *there*; keys and values
            are read at the position that is attended to. So many times as slow; for texts whose positions correspond.
        folder: where to keep the scores, about once a minute. A run that was stopped continues there. (Another metric
            is noticed if it says something else of the clean texts.)

    Raises:
        ValueError: if the two batches differ in shape, or the folder holds another run or a damaged file.
        NotForThisModel: see `graph_of`.
    """
    check_pairs(clean, corrupted)
    graph, run = graph_of(model), CleanRun(model, clean)
    logits, start = run.logits(run.residuals[-1]), _first_difference(clean, corrupted)
    before = metric(logits)                                                     # [batch]
    change = run_edges(model, corrupted)[1] - run_edges(model, clean)[1]        # [sender, batch, pos, d_model]
    places = range(start, clean.shape[1]) if by_position else range(1)
    scores = _Scores(before.new_zeros(len(graph.receivers), len(graph.senders), places.stop, len(before)))
    at_once = max(1, min(LOGITS_AT_ONCE // model.cfg.d_vocab, VECTORS_AT_ONCE) // clean[:, start:].numel())
    batches = [edges[i:i + at_once] for edges in _by_layer(graph, places) for i in range(0, len(edges), at_once)]

    def add(scores: _Scores, number: Int[Tensor, "1"]) -> None:
        rows, senders, there = zip(*batches[int(number)])
        some = change[list(senders), :, start:]                                 # [edge, batch, later pos, d_model]
        if by_position:
            here = torch.tensor(there)[:, None] == torch.arange(start, clean.shape[1])
            some = some * here.to(some)[:, None, :, None]
        later = _logits_reading(run, [graph.receivers[row] for row in rows], some.flatten(0, 1), start)
        for row, sender, place, each in zip(rows, senders, there, later.unflatten(0, (len(rows), -1))):
            scores.values[row, sender, place] = metric(torch.cat([logits[:, :start], each], dim=1)) - before

    keep = _keeper(folder, model, clean, corrupted, before, {"by_position": by_position, "batches": len(batches)})
    over_batches(scores, torch.arange(len(batches)), 1, add, "edges", keep)
    return scores.values if by_position else scores.values[:, :, 0]


@dataclass
class _Scores:
    """The scores of edges so far, and how many batches are in them."""

    values: Float[Tensor, "receiver sender *pos batch"]
    done: int = 0

    def tensors(self) -> dict[str, Tensor]:
        return {"scores": self.values, "done": torch.tensor(self.done)}

    def take(self, tensors: dict[str, Tensor]) -> None:
        self.values, self.done = tensors["scores"].to(self.values), int(tensors["done"])


def _keeper(
    folder: str | Path | None, model: TransformerBridge, clean: Tensor, corrupted: Tensor,
    before: Float[Tensor, "batch"], settings: dict[str, Any],
) -> Keeper | None:
    """Keeps scores in this folder, if there is one; metrics are told apart by what they say of the clean texts."""
    if not folder:
        return None
    said = [f"{value:.4g}" for value in before.tolist()]
    return Keeper(folder, in_short(model, clean=clean, corrupted=corrupted) | {"metric": said} | settings)


def _first_difference(clean: Int[Tensor, "batch pos"], corrupted: Int[Tensor, "batch pos"]) -> int:
    """The first position at which texts of some pair differ; the first of all if none do."""
    return int((clean != corrupted).any(dim=0).int().argmax())


def _by_layer(graph: Graph, places: Iterable[int]) -> list[list[tuple[int, int, int]]]:
    """The edges into each layer, then those into the logits, at each place: (receiver, sender, place)."""
    layers = groupby(enumerate(graph.receivers), key=lambda each: each[1].layer)
    return [[(row, sender, place) for row, receiver in some for sender in range(receiver.senders) for place in places]
            for _, some in layers]


def _logits_reading(
    run: CleanRun, receivers: list[Receiver], added: Float[Tensor, "rows pos-start d_model"], start: int
) -> Float[Tensor, "rows pos-start vocab"]:
    """Logits, from `start` on, of clean passes in each of which one receiver reads something more.

    The receivers are of one layer, each for as many rows as there are texts; equal ones stand together.
    """
    layer, first, hooks = receivers[0].layer, 0, []
    residual = run.residuals[layer][:, start:].repeat(len(receivers), 1, 1)
    if receivers[0].part == "logits":
        return run.logits(residual + added)
    for receiver, equal in groupby(receivers):
        rows = slice(first, first := first + len(list(equal)) * len(run.tokens))
        hooks += _reading_hooks(run.model, receiver, partial(added.__getitem__, rows), rows)
    with run.model.hooks(fwd_hooks=hooks):
        return run.logits(run.continue_from(layer, residual, start=start))


def attribution_scores(
    model: TransformerBridge, clean: Int[Tensor, "batch pos"], corrupted: Int[Tensor, "batch pos"], metric: Metric, *,
    steps: int = 1, by_position: bool = False, folder: str | Path | None = None,
) -> Float[Tensor, "receiver sender *pos batch"]:
    """`exact_scores` estimated: what the sender's output changes by, times the metric's slope at the receiver's input.

    With one step the slope is that of the clean pass: edge attribution patching (Syed et al., 2023, arXiv 2310.10348).
    With more it is the mean over passes between the two texts, whose embeddings are mixed at the middles of `steps`
    equal pieces of the way: integrated gradients (Hanna et al., 2024, arXiv 2403.17806, who take the pieces' ends).
    `by_position` and `folder` are those of `exact_scores`.

    Raises:
        ValueError: if there is no step, or as `exact_scores` does.
        NotForThisModel: see `graph_of`.
    """
    check_pairs(clean, corrupted)
    if steps < 1:
        raise ValueError(f"steps is {steps}; one gives edge attribution patching, more integrated gradients")
    graph = graph_of(model)
    with torch.no_grad():
        logits, own = run_edges(model, clean)
        embedded, change = own[0].clone(), run_edges(model, corrupted)[1].sub_(own)
        before = metric(logits)
        del own, logits
    scores = _Scores(change.new_zeros(*graph.edges.shape, *(clean.T.shape if by_position else clean.shape[:1])))
    at_once = max(1, SLOPES_AT_ONCE // clean.numel())
    ways = [(step + 0.5) / steps for step in range(steps)] if steps > 1 else [0.0]
    groups = [slice(first, first + at_once) for first in range(0, len(graph.receivers), at_once)]
    passes = list(product(ways, groups))

    def add(scores: _Scores, number: Int[Tensor, "1"]) -> None:
        way, some = passes[int(number)]
        slopes = _slopes(model, clean, embedded + way * change[0], metric, graph.receivers[some])
        scores.values[some] += torch.einsum(f"rbpd,sbpd->rs{'p' if by_position else ''}b", slopes, change) / steps

    keep = _keeper(folder, model, clean, corrupted, before,
                   {"by_position": by_position, "steps": steps, "groups": len(groups)})
    over_batches(scores, torch.arange(len(passes)), 1, add, "edges' slopes", keep)
    return scores.values * _at_positions(graph.edges.to(scores.values), scores.values.shape[2:])


@torch.enable_grad()
def _slopes(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], embedded: Float[Tensor, "batch pos d_model"],
    metric: Metric, receivers: tuple[Receiver, ...],
) -> Float[Tensor, "receiver batch pos d_model"]:
    """The metric's gradient with respect to what each of these receivers reads."""
    hooks: list[tuple[str, Callable]] = [("blocks.0.hook_resid_pre", lambda x, hook: embedded)]
    nothing = [embedded.new_zeros(embedded.shape, requires_grad=True) for _ in receivers]
    for i, receiver in enumerate(receivers):
        hooks += _reading_hooks(model, receiver, partial(nothing.__getitem__, i))
    logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
    return torch.stack(torch.autograd.grad(metric(logits).sum(), nothing))


# --- circuits of many edges -------------------------------------------------------------------------------------------


@torch.no_grad()
def run_circuit(
    model: TransformerBridge, clean: Int[Tensor, "batch pos"], corrupted: Int[Tensor, "batch pos"],
    circuit: Bool[Tensor, "receiver sender *pos"], *,
    outside: Float[Tensor, "sender #batch #pos d_model"] | None = None,
) -> Float[Tensor, "batch pos vocab"]:
    """Logits of a clean pass in which only the circuit's edges are clean; others carry the corrupted pass's.

    An edge of the circuit carries what its sender writes in *this* pass, which may read corrupted edges itself.

    Args:
        circuit: which edges; with a third dimension, at which positions.
        outside: what the other edges carry in place of the corrupted pass's, such as zeros or means over texts.

    Raises:
        ValueError: if the circuit has an edge that the model has not, or another shape, or `outside` does not have a
            row for each sender.
        NotForThisModel: see `graph_of`.
    """
    check_pairs(clean, corrupted)
    graph = graph_of(model)
    edges = _at_positions(graph.edges, clean.shape[1:] if circuit.ndim == 3 else ())
    if circuit.shape != edges.shape or (circuit.cpu() & ~edges).any():
        raise ValueError("a circuit is a mask of the model's edges, "
                         f"bool {list(edges.shape)}: see graph_of(model).edges")
    if outside is not None and len(outside) != len(graph.senders):
        raise ValueError(f"`outside` has {len(outside)} rows; the model has {len(graph.senders)} senders")
    other = run_edges(model, corrupted)[1] if outside is None else outside
    left_out = dict(zip(graph.receivers, (~circuit).to(other)))                 # receiver -> [sender *pos], 0 or 1
    changes = other.new_zeros(len(other), *clean.shape, model.cfg.d_model)

    def corrupt(receiver: Receiver, outputs: list[Tensor]) -> Float[Tensor, "batch pos d_model"]:
        for i in range(changed[0], len(outputs)):
            changes[i] = other[i] - outputs[i]
        changed[0] = len(outputs)
        some, read = left_out[receiver][:receiver.senders], changes[:receiver.senders]
        return torch.tensordot(some, read, dims=1) if some.ndim == 1 else torch.einsum("sp,sbpd->bpd", some, read)

    changed = [0]                                                               # for how many senders that is known
    return run_edges(model, clean, corrupt)[0]


@torch.no_grad()
def without_subsets(
    model: TransformerBridge, clean: Int[Tensor, "batch pos"], corrupted: Int[Tensor, "batch pos"],
    circuit: Bool[Tensor, "receiver sender *pos"], subsets: Bool[Tensor, "subset receiver sender *pos"], metric: Metric,
) -> tuple[Float[Tensor, "subset batch"], Float[Tensor, "subset batch"]]:
    """The metric of the circuit, and of the whole model, when some of the circuit's edges are taken from both.

    A circuit is *complete* if both are alike whatever is taken: all that does the same work is in it, what takes over
    when other parts fail included. If nothing is taken, the question is whether it is faithful; if all of it is,
    whether the rest of the model does the work too. Source: Wang et al. (2022, arXiv 2211.00593), F(C − K), F(M − K).

    Raises:
        ValueError: if a subset has edges outside the circuit, or as `run_circuit` does.
        NotForThisModel: see `graph_of`.
    """
    if subsets.shape[1:] != circuit.shape or (subsets & ~circuit).any():
        raise ValueError("subsets are masks of the circuit's own edges, "
                         f"bool [subset, {', '.join(map(str, circuit.shape))}]")
    check_pairs(clean, corrupted)
    outside = run_edges(model, corrupted)[1]
    whole = _at_positions(graph_of(model).edges, circuit.shape[2:]).to(circuit.device)
    of_circuit, of_model = (torch.stack([
        metric(run_circuit(model, clean, corrupted, all_edges & ~each, outside=outside)) for each in subsets])
        for all_edges in (circuit, whole))
    return of_circuit, of_model


def worst_subset(
    model: TransformerBridge, clean: Int[Tensor, "batch pos"], corrupted: Int[Tensor, "batch pos"],
    circuit: Bool[Tensor, "receiver sender *pos"], size: int, metric: Metric, *, tries: int = 10, seed: int = 0,
) -> Bool[Tensor, "receiver sender *pos"]:
    """A subset of the circuit's edges without which circuit and model differ much: see `without_subsets`.

    Greedy, as Wang et al. (2022) search: of `tries` edges drawn from those left, the one is taken that brings the two
    means over the texts farthest apart, `size` times.

    Raises:
        ValueError: if the circuit has fewer than `size` edges, or as `without_subsets` does.
    """
    if not 0 <= size <= int(circuit.sum()):
        raise ValueError(f"size is {size}; this circuit has {int(circuit.sum())} edges")
    taken, rng = torch.zeros_like(circuit), torch.Generator().manual_seed(seed)
    for _ in range(size):
        left = (circuit & ~taken).nonzero().cpu()
        drawn = left[torch.randperm(len(left), generator=rng)[:tries]]
        subsets = torch.stack([taken] * len(drawn))
        edge_of_each = torch.arange(len(drawn)), *drawn.T
        subsets[edge_of_each] = True
        of_circuit, of_model = without_subsets(model, clean, corrupted, circuit, subsets, metric)
        taken = subsets[(of_circuit - of_model).mean(-1).abs().argmax()]
    return taken


def best_edges(
    scores: Float[Tensor, "receiver sender *pos"], k: int, edges: Bool[Tensor, "receiver sender"],
) -> Bool[Tensor, "receiver sender *pos"]:
    """The circuit of the k edges whose scores are largest in size; of edges by position, if the scores are.

    Raises:
        ValueError: if there are fewer than k edges.
    """
    edges = _at_positions(edges, scores.shape[2:])
    if not 0 <= k <= int(edges.sum()):
        raise ValueError(f"k is {k}; this model has {int(edges.sum())} edges")
    sizes = torch.where(edges.to(scores.device), scores.abs(), -1.0).flatten()
    circuit = torch.zeros_like(sizes, dtype=torch.bool)
    circuit[sizes.topk(k).indices] = True
    return circuit.reshape(edges.shape)


def _at_positions(edges: Bool[Tensor, "receiver sender"], positions: tuple[int, ...]) -> Bool[
        Tensor, "receiver sender *pos"]:
    """The mask itself, or the same at each of so many positions."""
    return edges.reshape(*edges.shape, *[1] * len(positions)).expand(*edges.shape, *positions)


def check_pairs(clean: Tensor, corrupted: Tensor) -> None:
    """Raise ValueError unless the two batches have one shape: text i of one belongs to text i of the other."""
    if clean.shape != corrupted.shape or clean.dim() != 2:
        raise ValueError(f"clean is {list(clean.shape)} and corrupted {list(corrupted.shape)}; both must be "
                         "[batch, pos], text i of one the partner of text i of the other, position by position")
