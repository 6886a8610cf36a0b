"""The cells of the table of families and functions: what the course says of a model, and what a plain pass says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import families
import plain_edges
import plain_graphs
import plain_passes as slow
import plain_paths as paths
import torch
from plain_model import OnlyRefusal, Plain
from torch import Tensor

from course_utils import (
    ablation,
    attribution_graphs,
    baselines,
    circuits,
    edges,
    faithfulness,
    heads,
    pairs,
    probes,
    repeated_tokens,
    splicing,
    text,
    transcoders,
)
from course_utils.house import NotForThisModel
from course_utils.logit_attribution import direct_logit_attribution
from course_utils.passes import clean_run, sites
from course_utils.path_patching import path_patching

SEQ_LEN, BATCH = 6, 3
TOLERANCE = 2e-3                # of the largest number of a cell
Numbers = dict[str, Tensor]


class Case:
    """One family: the course's bridge, the plain model, and the tokens that both read."""

    def __init__(self, name: str) -> None:
        self.refused: list[int] = []                                # layers of the last cell that were refused
        self.name, self.plain = name, Plain(families.hugging_face(name))
        half = torch.stack([
            1 + torch.randperm(families.VOCAB - 1, generator=torch.Generator().manual_seed(row))[:SEQ_LEN]
            for row in range(BATCH)])
        self.tokens = torch.cat([torch.zeros(BATCH, 1, dtype=torch.long), half, half], dim=1)
        self.change = torch.randn(BATCH, self.tokens.shape[1], self.plain.d_model,
                                          generator=torch.Generator().manual_seed(7))

    @cached_property
    def bridge(self):
        return families.family(self.name).bridge


# --- cells: name -> (what the course says, what a plain pass says, how they are compared) ----------------------------

CELLS: dict[str, tuple[Callable[[Case], Numbers], Callable[[Case], Numbers], str]] = {}


def cell(name: str, slowly: Callable[[Case], Numbers], compare: str = "equal"):
    """Compare: "equal", or "slope": equal up to one positive number for each layer."""
    def add(course: Callable[[Case], Numbers]):
        CELLS[name] = course, slowly, compare
        return course

    return add


def each(names: tuple, of: Callable) -> Callable[[Case], Numbers]:
    return lambda case: {str(name): of(case, name) for name in names}


@cell("load", lambda c: {"log p": c.plain.log_probs(c.tokens)})
def _(case):
    return {"log p": case.bridge(case.tokens).log_softmax(-1)}


@cell("repeated_token_report", lambda c: {"log p": c.plain.log_probs(_report_tokens(c))[:, :-1].gather(
    2, _report_tokens(c)[:, 1:, None])[..., 0]})
def _(case):
    return {"log p": repeated_tokens.repeated_token_report(case.bridge, SEQ_LEN, BATCH, seed=3).log_probs}


def _report_tokens(case):
    half = torch.randint(0, families.VOCAB, (BATCH, SEQ_LEN), generator=torch.Generator().manual_seed(3))
    return torch.cat([torch.zeros(BATCH, 1, dtype=torch.long), half, half], dim=1)


@cell("own_text", lambda c: {"tokens": _written(c.plain, 4, 8)})
def _(case):
    return {"tokens": text.own_text(case.bridge, 4, 8, seed=0).float()}


def _written(plain, n, length, seed=0):
    """Each token where the summed probabilities reach a random number, every step from a pass over all before it.

    Token 0 ends texts, and pads: no row begins or ends with it. (BOS is token 0 too, so inside it is a text's end.)
    """
    chance = torch.rand(n, length - 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    tokens = torch.zeros(n, 1, dtype=torch.long)
    for place, reach in enumerate(chance.T, 1):
        p = plain.run(tokens).logits[:, -1].double().softmax(-1)
        p[:, 0] *= place not in (1, length - 1)
        summed = p.cumsum(-1)
        tokens = torch.cat([tokens, (summed < reach[:, None] * summed[:, -1:]).sum(-1, keepdim=True)], 1)
    return tokens.float()


@cell("CleanRun.logits", lambda c: {"log p": c.plain.log_probs(c.tokens)})
def _(case):
    clean = clean_run.CleanRun(case.bridge, case.tokens)
    return {"log p": clean.logits(clean.residuals[-1]).log_softmax(-1)}


FROM = tuple((layer, start) for layer in range(families.LAYERS + 1) for start in (0, 4))


@cell("CleanRun.continue_from", each(FROM, lambda c, at: slow.continued(
    c.plain, c.tokens, at[0], c.change[:, at[1]:], at[1])[:, at[1]:]))
def _(case):
    clean = clean_run.CleanRun(case.bridge, case.tokens)

    def go_on(case, at):
        layer, start = at
        new = clean.residuals[layer][:, start:] + case.change[:, start:]
        twice = clean.continue_from(layer, torch.cat([clean.residuals[layer][:, start:], new]), start=start)
        return clean.logits(twice[len(new):]).log_softmax(-1)

    return each(FROM, go_on)(case)


KINDS = ("zero", "mean", "resample")


@cell("head_ablation_scores", each(KINDS, lambda c, kind: slow.head_ablation(c.plain, c.tokens, kind)))
def _(case):
    return each(KINDS, lambda c, kind: ablation.head_ablation_scores(c.bridge, c.tokens, kind))(case)


@cell("mlp_ablation_scores", each(KINDS, lambda c, kind: slow.mlp_ablation(c.plain, c.tokens, kind, SEQ_LEN)))
def _(case):
    return each(KINDS, lambda c, kind: ablation.mlp_ablation_scores(c.bridge, c.tokens, kind, seq_len=SEQ_LEN))(case)


@cell("mlp_patch_sweep", each((False, True), lambda c, published: slow.mlp_sweep(
    c.plain, c.tokens, SEQ_LEN, published)))
def _(case):
    return each((False, True), lambda c, published: ablation.mlp_patch_sweep(
        c.bridge, c.tokens, SEQ_LEN, as_published=published))(case)


@cell("mlp_attribution_sweep", lambda c: {"": slow.mlp_attribution(c.plain, c.tokens, SEQ_LEN)})
def _(case):
    return {"": ablation.mlp_attribution_sweep(case.bridge, case.tokens, SEQ_LEN)}


@cell("head_attribution_scores", each(KINDS, lambda c, kind: slow.head_attribution(c.plain, c.tokens, SEQ_LEN, kind)))
def _(case):
    return each(KINDS, lambda c, kind: ablation.head_attribution_scores(
        c.bridge, c.tokens, kind, seq_len=SEQ_LEN))(case)


@cell("induction_scores", lambda c: {
    "": slow.stripe(c.plain, c.tokens, lambda q: q - SEQ_LEN + 1 if q > SEQ_LEN else None),
    "diagonal": slow.stripe(c.plain, c.tokens, lambda q: q - SEQ_LEN + 1 if q >= SEQ_LEN - 1 else None),
    "in text": slow.stripe(c.plain, c.tokens, lambda q: q - SEQ_LEN + 1 if q > SEQ_LEN else None)})
def _(case):
    return {"": heads.induction_scores(case.bridge, case.tokens, SEQ_LEN),
            "diagonal": heads.induction_scores(case.bridge, case.tokens, SEQ_LEN, whole_diagonal=True),
            "in text": heads.induction_scores_in_text(case.bridge, case.tokens)}


@cell("previous_token_scores", lambda c: {"": slow.stripe(c.plain, c.tokens, lambda q: q - 1 if q else None)})
def _(case):
    return {"": heads.previous_token_scores(case.bridge, case.tokens)}


@cell("duplicate_token_scores", lambda c: {
    "": slow.stripe(c.plain, c.tokens, lambda q: q - SEQ_LEN if q > SEQ_LEN else None)})
def _(case):
    return {"": heads.duplicate_token_scores(case.bridge, case.tokens, SEQ_LEN)}


@cell("direct_logit_attribution", lambda c: slow.attribution(c.plain, c.tokens))
def _(case):
    return direct_logit_attribution(case.bridge, case.tokens)


def _every_head(case, of):
    """[layer, head, ...]; NaN in layers that are refused, if some are not."""
    rows, refusals = {}, {}
    for layer in range(case.plain.n_layers):
        try:
            rows[layer] = torch.stack([of(layer, head) for head in range(case.plain.n_heads)])
        except NotForThisModel as refusal:
            refusals[layer] = refusal
    if not rows:
        raise refusals[0]
    case.refused = list(refusals)
    nothing = torch.full_like(next(iter(rows.values())), torch.nan)
    return torch.stack([rows.get(layer, nothing) for layer in range(case.plain.n_layers)])


def _qk(case, distances):
    def rows(layer, head):
        return torch.stack([
            _read(circuits.full_QK_circuit(case.bridge, layer, head, distance=d), slow.QUERIES, slow.KEYS)
            for d in distances])

    found = _every_head(case, rows)
    return found - found.mean(-1, keepdim=True)


def _read(circuit, rows, columns):
    return circuit.A[rows] @ circuit.B[:, columns]


@cell("full_QK_circuit", lambda c: {"": slow.full_QK(c.plain)}, "slope")
def _(case):
    return {"": _qk(case, (0,))}


@cell("full_QK_circuit(distance)", lambda c: {"": slow.full_QK(c.plain, (0, 1, 3))}, "slope")
def _(case):
    return {"": _qk(case, (0, 1, 3))}


@cell("full_OV_circuit", lambda c: {"": slow.full_OV(c.plain)}, "slope")
def _(case):
    found = _every_head(case, lambda l, h: _read(circuits.full_OV_circuit(case.bridge, l, h), slow.KEYS, slice(None)))
    return {"": found - found.mean(-1, keepdim=True)}


@cell("K_comp_full_circuit", lambda c: {"": slow.K_comp(c.plain)}, "slope")
def _(case):
    found = torch.stack([_read(circuits.K_comp_full_circuit(case.bridge, 0, 1, head, head), slow.QUERIES, slow.KEYS)
                         for head in range(case.plain.n_heads)])
    return {"": found - found.mean(-1, keepdim=True)}


EMBEDDINGS = ((None, True), ((1, 2), True), ((0, 1, 2, 3), True), ((0, 1, 2, 3), False))


@cell("effective_embedding", each(EMBEDDINGS, lambda c, how: slow.effective_embedding(
    c.plain, None if how[0] is None else list(how[0]), how[1])))
def _(case):
    return each(EMBEDDINGS, lambda c, how: c.plain.centred(
        circuits.effective_embedding(c.bridge, heads=how[0] or (), mlp=how[1])))(case)


@cell("composition_scores", each(("K", "Q", "V"), lambda c, kind: slow.composition(c.plain, kind)))
def _(case):
    return each(("K", "Q", "V"), lambda c, kind: circuits.composition_scores(c.bridge, kind))(case)


@cell("positional_pattern", lambda c: {"": slow.positional_pattern(c.plain, 9)})
def _(case):
    return {"": _every_head(case, lambda layer, head: circuits.positional_pattern(case.bridge, layer, head, 9))}


@cell("score_by_distance", lambda c: {"": slow.score_by_distance(c.plain, c.tokens[:, :7], 3)})
def _(case):
    return {"": _every_head(case, lambda l, h: circuits.score_by_distance(case.bridge, l, h, case.tokens[:, :7], 3))}


# --- paths and autoencoders ------------------------------------------------------------------------------------------

PATHS = (((0, 1), ((1, 2), (2, 0)), "k", "mean"), ((0, 2), ((1, 0),), "q", "zero"),
         ((1, 3), ((2, 1),), "v", "resample"), ((0, 0), ((1, 1), (2, 3)), "qk", "mean"))


@cell("path_patching", lambda c: {f"{at} {key}": value for at in PATHS for key, value in paths.path_patching(
    c.plain, c.tokens, SEQ_LEN, at[0], list(at[1]), at[2], at[3]).items()})
def _(case):
    found = {at: path_patching(case.bridge, case.tokens, SEQ_LEN, at[0], at[1], into=at[2], kind=at[3]) for at in PATHS}
    return {f"{at} {key}": torch.tensor(value) for at, effect in found.items() for key, value in (
        ("clean", effect.clean), ("by path", effect.path - effect.clean), ("in all", effect.total - effect.clean))}


def _place(case: Case, point: str) -> tuple[paths.Place, paths.Autoencoder]:
    layer, *rest = point.split(" ")
    place = paths.Place(case.plain, int(layer), rest[0], int(rest[1]) if len(rest) > 1 else None)
    return place, paths.Autoencoder(place.width, f"blocks.{layer}.{rest[0]}")


def _metrics(report, names):
    return {name: torch.tensor(getattr(report, name)) for name in names}


def _evaluated(case: Case, point: str) -> Numbers:
    place, sae = _place(case, point)
    report = faithfulness.evaluate_sae(case.bridge, sae, case.tokens, head=place.head, batch_size=2, resamples=0)
    return _metrics(report, ("kl", "delta_ce", "ce_sae", "ce_clean", "ce_zero", "kl_zero", "ce_mean"))


POINTS = {"resid_pre": "1 hook_resid_pre", "resid_post": "0 hook_resid_post", "mlp_out": "1 hook_mlp_out",
          "attn_out": "1 hook_attn_out", "z": "1 attn.hook_z", "one head": "1 attn.hook_z 2"}
for name, point in POINTS.items():
    cell(f"evaluate_sae({name})", lambda c, point=point: paths.evaluated(c.plain, c.tokens, *_place(c, point)))(
        lambda c, point=point: _evaluated(c, point))


@cell("collect_activations", each(
    tuple(POINTS.values()), lambda c, point: _place(c, point)[0].read(c.tokens)[:, 1:].flatten(0, 1)))
def _(case):
    def read(case, point):
        place, sae = _place(case, point)
        found = sites.collect_activations(case.bridge, sae.hook_name, case.tokens, head=place.head)
        return found if "hook_z" in point else case.plain.centred(found)

    return each(tuple(POINTS.values()), read)(case)


@cell("noise_floor", lambda c: [paths.floor(c.plain, c.tokens, *_place(c, "1 hook_resid_pre"), mean)
                                for mean in ("none", "all", "positions")])
def _(case):
    kinds = ("norm_only", "norm_corrected", "zero", "mean")
    found = baselines.noise_floor(case.bridge, _place(case, "1 hook_resid_pre")[1], case.tokens, kinds, 1, resamples=1)
    return {f"{kind} {name}": torch.tensor(getattr(found, name)[kind])
            for kind in ("sae", *kinds) for name in ("kl", "delta_ce")}


@cell("patched_logits", lambda c: {"clean": c.plain.log_probs(c.tokens), "patched": paths.spliced(
    c.plain, c.tokens, *_place(c, "1 hook_resid_pre"))})
def _(case):
    both = faithfulness.patched_logits(case.bridge, _place(case, "1 hook_resid_pre")[1], case.tokens)
    return {name: logits.log_softmax(-1) for name, logits in zip(("clean", "patched"), both)}


@cell("spliced", each(("1 hook_resid_pre", "1 hook_resid_post"), lambda c, at: paths.spliced(
    c.plain, c.tokens, *_place(c, at))))
def _(case):
    def run(case, at):
        with splicing.spliced(case.bridge, _place(case, at)[1]):
            return case.bridge(case.tokens).log_softmax(-1)

    return each(("1 hook_resid_pre", "1 hook_resid_post"), run)(case)


@cell("without_latents", lambda c: {"": paths.without_latents(
    c.plain, c.tokens, *_place(c, "1 hook_resid_pre"), [1, 4, 7])})
def _(case):
    with splicing.without_latents(case.bridge, _place(case, "1 hook_resid_pre")[1], [1, 4, 7]):
        return {"": case.bridge(case.tokens).log_softmax(-1)}


READERS = [(1, 2), (2, 1)]


@cell("log_probs_reading", each(("q", "k", "v"), lambda c, into: paths.reading_spliced(
    c.plain, c.tokens, *_place(c, "1 hook_resid_pre"), READERS, into)))
def _(case):
    sae = _place(case, "1 hook_resid_pre")[1]
    return each(("q", "k", "v"), lambda c, into: splicing.log_probs_reading(
        c.bridge, sae, c.tokens, SEQ_LEN, READERS, into))(case)


# --- pairs of texts, edges, directions -------------------------------------------------------------------------------


@cell("own_pairs", lambda c: _pairs(c.plain, 3, 8))
def _(case):
    return {name: tokens.float() for name, tokens in vars(pairs.own_pairs(case.bridge, 3, 8, seed=0)).items()}


def _pairs(plain, n, length):
    """Another text's token in the middle (where it is the same, the one before), and whom that harms and helps most."""
    clean, middle = _written(plain, n, length), length // 2
    corrupted, other = clean.clone(), _written(plain, n, length, seed=1)[:, middle]
    corrupted[:, middle] = torch.where(other == clean[:, middle], clean[:, middle - 1], other)
    before, after = (plain.log_probs(tokens.long())[:, -1].exp() for tokens in (clean, corrupted))
    return {"clean": clean, "corrupted": corrupted, "right": (before - after).argmax(-1).float(),
            "wrong": (after - before).argmax(-1).float()}


def _two(case):
    """Two short texts, and the same with another token at one place."""
    clean = case.tokens[:2, :6]
    corrupted = clean.clone()
    corrupted[:, 3] = clean[:, 3] % (families.VOCAB - 1) + 1
    return clean, corrupted


def _answer(logits):
    return logits[:, -1, 4] - logits[:, -1, 9]


@cell("exact_scores", lambda c: {"": plain_edges.exact(c.plain, *_two(c))})
def _(case):
    return {"": edges.exact_scores(case.bridge, *_two(case), _answer)}


@cell("attribution_scores", lambda c: {"": plain_edges.attributed(c.plain, *_two(c), (0.0,))})
def _(case):
    return {"": edges.attribution_scores(case.bridge, *_two(case), _answer)}


@cell("attribution_scores(steps)", lambda c: {"": plain_edges.attributed(c.plain, *_two(c), (0.25, 0.75))})
def _(case):
    return {"": edges.attribution_scores(case.bridge, *_two(case), _answer, steps=2)}


def _in_circuit(receiver, sender):
    return (3 * receiver + sender) % 5 > 1


@cell("run_circuit", lambda c: {"": plain_edges.circuit(c.plain, *_two(c), _in_circuit)})
def _(case):
    mask = edges.graph_of(case.bridge).edges
    rows, columns = (torch.arange(n) for n in mask.shape)
    mask &= _in_circuit(rows[:, None], columns)
    return {"": edges.run_circuit(case.bridge, *_two(case), mask).log_softmax(-1)}


MOVED = ((1, "in", "blocks.1.hook_resid_pre"), (1, "out", "blocks.1.hook_resid_post"))


def _direction(case):
    """Without a mean: a LayerNorm's stream has one or not, depending on how it is wrapped."""
    direction = case.change[0, 0]
    return direction - direction.mean()


def _moved(case, move):
    """Log-probabilities at the last position with a hook of the course."""
    return {hook_name: probes.hooked_logits(case.bridge, case.tokens, hook_name, move).log_softmax(-1)
            for *_, hook_name in MOVED}


def _plainly_moved(change):
    """The same, by change(a vector of the stream, the direction of length 1)."""
    def slowly(case):
        unit = _direction(case) / _direction(case).norm()
        return {hook_name: plain_edges.moved(case.plain, case.tokens, *place, lambda x: change(x, unit))
                for *place, hook_name in MOVED}

    return slowly


@cell("steering", _plainly_moved(lambda x, unit: x + 3 * unit))
def _(case):
    return _moved(case, probes.steering(_direction(case), 3.0, start=2))


@cell("setting", _plainly_moved(lambda x, unit: x - (x @ unit) * unit + 1.5 * unit))
def _(case):
    return _moved(case, probes.setting(_direction(case), 1.5, start=2))


# --- transcoders, attribution graphs ---------------------------------------------------------------------------------

D_SAE, ANSWERS, FACTOR = 8, [3, (4, 9)], 0.5


def _transcoders(case):
    """{layer: random weights}. What they write has no mean, as what a LayerNorm's model writes once it is wrapped."""
    found = {}
    for layer in range(case.plain.n_layers):
        found[layer] = transcoders.Transcoder(case.plain.d_model, D_SAE, skip=True).requires_grad_(False)
        rng = torch.Generator().manual_seed(layer)
        for name, weight in found[layer].named_parameters():
            weight.copy_(torch.randn(weight.shape, generator=rng) / 3)
            if name != "b_enc":
                axis = 0 if name in ("W_enc", "W_skip") else -1                     # W_skip's rows are what is written
                weight -= weight.mean(axis, keepdim=True)
    return found


def _prompt(case):
    return case.tokens[:1, :6]


@cell("mlp_inputs_and_outputs", lambda c: {f"{layer} {name}": of(c.plain, c.tokens, layer)[:, 1:].flatten(0, 1)
      for layer in range(c.plain.n_layers)
      for name, of in (("in", plain_graphs.mlp_read), ("out", plain_graphs.mlp_written))})
def _(case):
    found = {layer: transcoders.mlp_inputs_and_outputs(case.bridge, layer, case.tokens, batch_size=2)
             for layer in range(case.plain.n_layers)}
    return {f"{layer} {name}": case.plain.centred(x) for layer, both in found.items() for name, x in zip(
        ("in", "out"), both)}


SOME = ([1], [0, 1, 2])


@cell("replaced_logits", each(tuple(map(tuple, SOME)), lambda c, some: plain_graphs.replaced(
    c.plain, c.tokens, {layer: _transcoders(c)[layer] for layer in some})))
def _(case):
    return each(tuple(map(tuple, SOME)), lambda c, some: transcoders.replaced_logits(
        c.bridge, {layer: _transcoders(c)[layer] for layer in some}, c.tokens).log_softmax(-1))(case)


@cell("FrozenModel", each((True, False), lambda c, errors: plain_graphs.Frozen(
    c.plain, _prompt(c), _transcoders(c)).replacement(errors)[0]))
def _(case):
    frozen = attribution_graphs.FrozenModel(case.bridge, _transcoders(case), _prompt(case)[0])
    return each((True, False), lambda c, errors: frozen.replaced_logits(errors).log_softmax(-1))(case)


@cell("attribution_graph", lambda c: plain_graphs.Frozen(c.plain, _prompt(c), _transcoders(c)).graph(ANSWERS))
def _(case):
    graph = attribution_graphs.attribution_graph(case.bridge, _transcoders(case), _prompt(case)[0], ANSWERS)
    logits = graph.of_kind("logit")
    targets = graph.of_kind("feature") | logits
    return {"values": graph.values[targets], "edges": graph.edges[targets][:, ~logits],
            "constants": graph.constants[targets]}


CHANGED = [0, 5, 12, -8]                # nodes: features, and an error (the last before the embeddings)


@cell("interventions", lambda c: plain_graphs.Frozen(c.plain, _prompt(c), _transcoders(c)).interventions(
    ANSWERS, CHANGED, FACTOR))
def _(case):
    graph = attribution_graphs.attribution_graph(case.bridge, _transcoders(case), _prompt(case)[0], ANSWERS)
    which = [i if i >= 0 else i + len(graph.nodes) - len(ANSWERS) for i in CHANGED]
    predicted, measured = attribution_graphs.interventions(case.bridge, graph, which, FACTOR)
    return {"predicted": predicted.float(), "measured": measured}


def _changed(layer, features):
    features = features.clone()
    features[..., 3] += 0.7
    return features * (0.5 + layer)


@cell("run_features", lambda c: {"": plain_graphs.with_features(c.plain, c.tokens, _transcoders(c), _changed)})
def _(case):
    return {"": attribution_graphs.run_features(
        case.bridge, _transcoders(case), case.tokens, _changed).log_softmax(-1)}


# --- judging ---------------------------------------------------------------------------------------------------------


@dataclass
class Verdict:
    """What became of one cell."""

    kind: str                                                       # right, refused, WRONG, CRASH, REFEREE
    reason: str = ""
    worst: float = 0.0                               # largest difference, relative to the largest number


def judge(case: Case, name: str) -> Verdict:
    """One cell of the table."""
    course, slowly, compare = CELLS[name]
    case.refused = []
    try:
        with torch.enable_grad() if "attribution_s" in name else torch.no_grad():
            found = course(case)
    except Exception as error:  # noqa: BLE001 - whatever the course raises is what the table is about
        return Verdict("refused" if isinstance(error, NotForThisModel) else "CRASH", in_words(error))
    try:
        with torch.no_grad():
            wanted = slowly(case)
    except OnlyRefusal as reason:
        return Verdict("WRONG", f"a number, but {reason}")
    except Exception as error:  # noqa: BLE001 - a family that the plain passes cannot read must not end the table
        return Verdict("REFEREE", in_words(error))
    if case.refused:
        answered = [layer for layer in range(case.plain.n_layers) if layer not in case.refused]
        found, wanted = ({key: value[answered] for key, value in numbers.items()} for numbers in (found, wanted))
    worst, where = min(furthest(found, one, compare) for one in (wanted if isinstance(wanted, list) else [wanted]))
    refused = ", ".join(f"layer {layer}" for layer in case.refused)
    return (Verdict("right", f"but {refused} refused" if refused else "", worst) if worst < TOLERANCE else
            Verdict("WRONG", f"off by {worst:.2g} ({where})", worst))


def in_words(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300].removeprefix("NotForThisModel: ")


def furthest(found: Numbers, wanted: Numbers, compare: str) -> tuple[float, str]:
    """The largest difference, and where it is."""
    return max((difference(found.get(key), wanted.get(key), compare), key) for key in {*found, *wanted})


def difference(found: Tensor | None, wanted: Tensor | None, compare: str) -> float:
    """The largest difference over the largest number. A part that one side does not name counts as 0."""
    if found is None or wanted is None:
        return float((wanted if found is None else found).abs().max())
    if found.shape != wanted.shape:
        return float("inf")
    if compare == "slope":
        axes = tuple(range(1, wanted.ndim))
        slope = (found * wanted).sum(axes, keepdim=True) / found.pow(2).sum(axes, keepdim=True)
        found = found * slope.clamp_min(0)
    off = (found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-2)
    return float("inf") if off.isnan() else off.item()
