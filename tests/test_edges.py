"""Edges: single ones against full passes with plain hooks, gradients against theory, circuits at both ends."""

import math

import plain_edges
import pytest
import small_models
import torch
from families import family
from plain_model import Plain
from small_models import random_tokens

from course_utils import edges
from course_utils.edges import (
    attribution_scores,
    best_edges,
    exact_scores,
    graph_of,
    run_circuit,
    run_edges,
    without_subsets,
    worst_subset,
)
from course_utils.house import NotForThisModel
from course_utils.models import as_bridge, word_tokenizer
from course_utils.planted import planted_induction_model


@pytest.fixture(params=["multi_head", "grouped_query_biased"])
def model(request):
    return small_models.ALL[request.param]()


def pair(at: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Three texts, and the same with another token at one place."""
    clean = random_tokens(3, 7)
    corrupted = clean.clone()
    corrupted[:, at] = (clean[:, at] + torch.tensor([1, 5, 11])) % 29 + 1
    return clean, corrupted


def difference(logits):
    """A difference of two logits at the last position, for each text."""
    return logits[:, -1, 4] - logits[:, -1, 9]


def noted(model, tokens, name, *changes):
    """One activation of a full pass."""
    seen = []
    with torch.no_grad():
        model.run_with_hooks(tokens, fwd_hooks=[*changes, (name, lambda value, hook: seen.append(value.clone()))])
    return seen[0]


def written(model, tokens, sender):
    """What a sender adds to the stream: what is missing in its layer's output when it alone is zero."""
    if sender == "embed":
        return noted(model, tokens, "blocks.0.hook_resid_pre")
    if sender.startswith("mlp"):
        return noted(model, tokens, f"blocks.{sender[4:]}.hook_mlp_out")
    layer, head = map(int, sender.split("."))

    def silence(z, hook):
        z = z.clone()
        z[:, :, head] = 0
        return z

    out = f"blocks.{layer}.hook_attn_out"
    return noted(model, tokens, out) - noted(model, tokens, out, (f"blocks.{layer}.attn.hook_z", silence))


def patched_by_hand(model, clean, change, receiver):
    """Logits of a full clean pass in which one receiver reads `change` more: what it makes of it is noted before."""
    def add(x, hook):
        return x + change

    layer, head, part = receiver.layer, receiver.head, receiver.part
    if part == "logits":
        return model.run_with_hooks(clean, fwd_hooks=[(f"blocks.{layer - 1}.hook_resid_post", add)])
    if part == "mlp":
        name = f"blocks.{layer}.hook_mlp_out"
        beside = "hook_resid_pre" if model.cfg.parallel_attn_mlp else "hook_attn_out"   # what the MLP's input ends with
        new = noted(model, clean, name, (f"blocks.{layer}.{beside}", add))
        return model.run_with_hooks(clean, fwd_hooks=[(name, lambda out, hook: new)])
    name = f"blocks.{layer}.attn.hook_{part}"
    new = noted(model, clean, name, (f"blocks.{layer}.hook_resid_pre", add))

    def put(values, hook):
        values = values.clone()
        values[:, :, head] = new[:, :, head]
        return values

    return model.run_with_hooks(clean, fwd_hooks=[(name, put)])


@pytest.mark.parametrize("model", [
    small_models.multi_head, small_models.grouped_query_biased,
    pytest.param(lambda: family("pythia").bridge, id="MLP and attention side by side")])
@torch.no_grad()
def test_every_edge_is_what_full_passes_with_plain_hooks_give(model):
    """Every seventh edge by hand: all kinds are among them."""
    model = model()
    clean, corrupted = pair()
    graph, scores = graph_of(model), exact_scores(model, clean, corrupted, difference)
    before, biggest = difference(model(clean)), 0.0
    for s, sender in enumerate(graph.senders):
        change = written(model, corrupted, sender) - written(model, clean, sender)
        for r, receiver in enumerate(graph.receivers):
            if not graph.edges[r, s]:
                assert not scores[r, s].any()
            elif (r + 2 * s) % 7 == 0:
                by_hand = difference(patched_by_hand(model, clean, change, receiver)) - before
                assert scores[r, s] == pytest.approx(by_hand, abs=1e-4), (sender, receiver)
                biggest = max(biggest, by_hand.abs().max().item())
    assert biggest > 0.1


def test_the_graph_has_an_edge_where_the_sender_is_computed_before_the_receiver():
    graph = graph_of(small_models.grouped_query())                          # 2 layers, 6 heads on 2 key-value heads
    names = [str(receiver) for receiver in graph.receivers]
    assert graph.senders == ("embed", *(f"0.{h}" for h in range(6)), "mlp 0", *(f"1.{h}" for h in range(6)), "mlp 1")
    assert names[:11] == [*(f"0.{h}.q" for h in range(6)), "0.0.k", "0.1.k", "0.0.v", "0.1.v", "mlp 0"]
    edges = {name: row.int().sum().item() for name, row in zip(names, graph.edges)}
    assert edges["0.5.q"] == 1 and edges["mlp 0"] == 7 and edges["1.1.v"] == 8 and edges["logits"] == 15


@torch.no_grad()
def test_an_edge_at_one_position_is_what_full_passes_with_plain_hooks_give(model):
    """Every kind of edge at every position; the estimate's positions add up, and a circuit may lack one position."""
    clean, corrupted = pair(2)
    graph, scores = graph_of(model), exact_scores(model, clean, corrupted, difference, by_position=True)
    before, biggest = difference(model(clean)), 0.0
    for s, sender in enumerate(graph.senders):
        change = written(model, corrupted, sender) - written(model, clean, sender)
        for r, receiver in enumerate(graph.receivers):
            at = (r + 3 * s) % clean.shape[1]
            if graph.edges[r, s] and (r + 2 * s) % 7 == 0:
                there = torch.zeros_like(change)
                there[:, at] = change[:, at]
                by_hand = difference(patched_by_hand(model, clean, there, receiver)) - before
                assert scores[r, s, at] == pytest.approx(by_hand, abs=1e-4), (sender, receiver, at)
                biggest = max(biggest, by_hand.abs().max().item())
    assert biggest > 0.1 and not scores[~graph.edges].any()
    assert scores[:, :, :2] == pytest.approx(0, abs=1e-4)                       # before the texts part
    estimated = attribution_scores(model, clean, corrupted, difference, by_position=True)
    assert estimated.sum(2) == pytest.approx(attribution_scores(model, clean, corrupted, difference), abs=1e-4)
    circuit = ~best_edges(scores.mean(-1), 1, graph.edges) & graph.edges[:, :, None]
    (r, s, at), = (graph.edges[:, :, None] & ~circuit).nonzero().tolist()
    change = difference(run_circuit(model, clean, corrupted, circuit)) - before
    assert change == pytest.approx(scores[r, s, at], abs=1e-4) and change.abs().max() > 0.1
    taken = worst_subset(model, clean, corrupted, circuit, 1, difference, tries=2)
    assert taken.shape == circuit.shape and taken.sum() == 1 and not (taken & ~circuit).any()


@torch.no_grad()
def test_a_circuit_of_all_edges_is_the_model_and_one_of_none_the_corrupted_pass(model):
    clean, corrupted = pair()
    edges = graph_of(model).edges
    assert run_circuit(model, clean, corrupted, edges) == pytest.approx(model(clean), abs=1e-4)
    assert run_circuit(model, clean, corrupted, edges & False) == pytest.approx(model(corrupted), abs=1e-4)
    assert (model(clean) - model(corrupted))[:, -1].abs().max() > 0.1


@torch.no_grad()
def missing(model, steps):
    """What the embedding's edges do not share of the whole change of the text, as a part of it, for each text."""
    clean, corrupted = pair()
    whole = difference(model(corrupted)) - difference(model(clean))
    found = attribution_scores(model, clean, corrupted, difference, steps=steps)[:, 0].sum(0)
    return (found - whole).abs() / whole.abs().max()


@pytest.mark.slow
def test_integrated_gradients_are_complete_and_what_steps_miss_falls_with_their_square():
    few, many = (missing(small_models.multi_head(), steps) for steps in (32, 64))
    assert many.max() < 0.01
    assert (many.mean() / few.mean()).log2().item() == pytest.approx(-2, abs=0.15)


@pytest.mark.slow
def test_integrated_gradients_are_complete_with_grouped_queries():
    assert missing(small_models.grouped_query_biased(), 100).max() < 0.01


@pytest.mark.parametrize("receivers, by_position", [(2, False), (5, True)])
def test_attribution_of_some_receivers_at_a_time_is_that_of_all_at_once(model, monkeypatch, receivers, by_position):
    (clean, corrupted), passes = pair(), []
    how = {"steps": 2, "by_position": by_position}
    expected = attribution_scores(model, clean, corrupted, difference, **how)
    monkeypatch.setattr(edges, "SLOPES_AT_ONCE", receivers * clean.numel())
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda x, hook: passes.append(0))]):
        found = attribution_scores(model, clean, corrupted, difference, **how)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
    assert len(passes) == 2 + 2 * math.ceil(len(graph_of(model).receivers) / receivers)


@torch.no_grad()
def test_one_step_is_the_slope_of_a_small_change(model):
    """Along an edge the exact score of a change that is ε times as large is ε times its attribution."""
    clean, corrupted = pair()
    graph, scores = graph_of(model), attribution_scores(model, clean, corrupted, difference)
    own, other = run_edges(model, clean)[1], run_edges(model, corrupted)[1]
    best = scores.abs().mean(-1).flatten().topk(12).indices.tolist()
    for r, s in (divmod(each, len(graph.senders)) for each in best):
        change = 0.001 * (other[s] - own[s])
        up, down = (difference(patched_by_hand(model, clean, sign * change, graph.receivers[r])) for sign in (1, -1))
        assert (up - down) / 0.002 == pytest.approx(scores[r, s], rel=0.02, abs=0.02)


@torch.no_grad()
def test_other_edges_may_carry_something_else(model):
    """With every edge at its value in another text nothing but that text is left; zeros leave the biases."""
    clean, corrupted = pair()
    edges = graph_of(model).edges
    outputs = run_edges(model, clean.roll(1, dims=0))[1]
    assert run_circuit(model, clean, corrupted, edges & False, outside=outputs) == pytest.approx(
        model(clean.roll(1, dims=0)), abs=1e-5)
    nothing = run_circuit(model, clean, corrupted, edges & False, outside=0 * outputs[:, :1, :1])
    assert nothing == pytest.approx(nothing[:1, :1].expand_as(nothing), abs=1e-5)   # the same whatever the text
    with pytest.raises(ValueError, match="`outside` has 1 rows"):
        run_circuit(model, clean, corrupted, edges, outside=outputs[:1])


def plain_and_bridge():
    """The same weights: an untouched model of Llama's shape with grouped queries, and its bridge."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=30, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.5, bos_token_id=0, eos_token_id=0,
        attn_implementation="eager"))
    return Plain(model), as_bridge(model, word_tokenizer(small_models.WORDS, "<bos>"), name="bridge", device="cpu")


@torch.no_grad()
def test_circuit_and_model_without_subsets_are_what_plain_passes_give():
    plain, model = plain_and_bridge()
    (clean, corrupted), edges = pair(), graph_of(model).edges
    rng = torch.Generator().manual_seed(0)
    circuit, subset = ((torch.rand(edges.shape, generator=rng) < share) & edges for share in (0.5, 0.7))
    subsets = torch.stack([circuit & False, circuit & subset, circuit])
    found = without_subsets(model, clean, corrupted, circuit, subsets, difference)
    for all_edges, values in zip((circuit, edges), found):
        for taken, value in zip(subsets, values):
            kept = all_edges & ~taken
            assert value == pytest.approx(difference(plain_edges.circuit(
                plain, clean, corrupted, lambda r, s: bool(kept[r, s]))), abs=1e-4)
    assert (found[0] - found[1]).abs().amax(dim=1).min() > 0.01                  # two questions, not one


@torch.no_grad()
def test_a_circuit_without_the_backup_is_faithful_and_not_complete():
    """Wang et al.'s point: nothing shows until the part that the backup stands in for is taken from both."""
    model = planted_induction_model(backup=True)
    graph = graph_of(model)
    clean = torch.stack([torch.randperm(28, generator=torch.Generator().manual_seed(i))[:9] + 1 for i in range(3)])
    clean = torch.cat([torch.zeros(3, 1, dtype=torch.long), clean[:, :8], clean[:, 3:4]], dim=1)
    corrupted, right = clean.clone(), clean[:, 5]
    corrupted[:, 4] = 29                                                        # its first place: the key
    rows = [str(receiver) for receiver in graph.receivers]

    def circuit(*edges):
        mask = graph.edges & False
        for sender, receiver in edges:
            mask[rows.index(receiver), graph.senders.index(sender)] = True
        return mask

    def log_prob(logits):
        return logits[:, -1].log_softmax(-1).gather(1, right[:, None])[:, 0]

    first, second = ([("embed", "0.0.v"), ("0.0", f"1.{head}.k"), ("embed", f"1.{head}.v"), (f"1.{head}", "logits")]
                     for head in (0, 1))
    without, both = circuit(*first), circuit(*first, *second)
    for mask, gap, size in ((without, 0.0, 0), (without, 12.0, 1), (both, 0.0, 1), (both, 0.0, 3)):
        worst = worst_subset(model, clean, corrupted, mask, size, log_prob)
        of_circuit, of_model = without_subsets(model, clean, corrupted, mask, worst[None], log_prob)
        assert worst.sum() == size and not (worst & ~mask).any()
        assert of_model - of_circuit == pytest.approx(torch.full((1, 3), gap), abs=0.01)
    assert torch.equal(worst_subset(model, clean, corrupted, without, 1, log_prob), circuit(first[1]))
    with pytest.raises(ValueError, match="size is 5; this circuit has 4 edges"):
        worst_subset(model, clean, corrupted, without, 5, log_prob)
    with pytest.raises(ValueError, match="masks of the circuit's own edges"):
        without_subsets(model, clean, corrupted, without, both[None], log_prob)


def test_the_best_edges():
    scores = torch.tensor([[0.5, 9.0, 9.0], [-2.0, 0.1, 9.0]])
    edges = torch.tensor([[True, False, False], [True, True, False]])
    assert best_edges(scores, 2, edges).tolist() == [[True, False, False], [True, False, False]]
    with pytest.raises(ValueError, match="this model has 3 edges"):
        best_edges(scores, 4, edges)


def test_bad_input_is_refused_before_any_pass():
    model, (clean, corrupted) = small_models.multi_head(), pair()
    edges = graph_of(model).edges
    with small_models.forbidden_forward(model):
        for wrong, message in [
            (lambda: exact_scores(model, clean, corrupted[:2], difference), "both must be"),
            (lambda: attribution_scores(model, clean, corrupted, difference, steps=0), "steps is 0"),
            (lambda: run_circuit(model, clean, corrupted, edges[1:]), "mask of the model's edges"),
            (lambda: run_circuit(model, clean, corrupted, ~edges), "mask of the model's edges"),
            (lambda: run_circuit(model, clean, corrupted, edges[:, :, None]), "mask of the model's edges"),
        ]:
            with pytest.raises(ValueError, match=message):
                wrong()


def test_no_hook_is_left(model):
    clean, corrupted = pair()
    before = small_models.hook_count(model)
    exact_scores(model, clean, corrupted, difference)
    attribution_scores(model, clean, corrupted, difference)
    run_circuit(model, clean, corrupted, graph_of(model).edges)
    assert small_models.hook_count(model) == before


def test_in_blocks_whose_mlp_runs_beside_the_attention_no_head_sends_to_that_mlp():
    graph = graph_of(family("pythia").bridge)
    assert [graph.edges[list(map(str, graph.receivers)).index(f"mlp {layer}")].sum() for layer in (0, 1)] == [1, 6]


def test_other_blocks_are_refused_in_words():
    with pytest.raises(NotForThisModel, match="a graph of edges is not for this model"):
        graph_of(family("gemma2").bridge)
