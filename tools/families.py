"""Right, or refused in words: a table of model families × public functions.

    python tools/families.py [family …] [--function NAME …] [--list]

Every cell holds what the course computes on a small random model against a slow, plain pass through the untouched
transformers model (tests/plain_passes.py). "right", "refused" (the course says which trait of the model makes it
impossible), WRONG (another number) or CRASH (any other error); the last two make the command fail.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]
os.environ["COURSE_BARS"] = "off"

import torch

import families
import plain_passes as slow
from course_utils import ablation, circuits, clean_run, heads, repeated_tokens, text
from course_utils.logit_attribution import direct_logit_attribution
from plain_model import OnlyRefusal, Plain

try:
    from course_utils.traits import NotForThisModel
except ImportError:                                                 # without it nothing is refused in words
    NotForThisModel = None

TOLERANCE = 2e-3                # of the largest number of a cell
SEQ_LEN, BATCH = 6, 3
Numbers = dict[str, torch.Tensor]


class Case:
    """One family: the course's bridge, the plain model, and the tokens that both read."""

    def __init__(self, name: str) -> None:
        self.name, self.plain = name, Plain(families.hugging_face(name))
        half = torch.stack([1 + torch.randperm(families.VOCAB - 1, generator=torch.Generator().manual_seed(row))[:SEQ_LEN]
                            for row in range(BATCH)])
        self.tokens = torch.cat([torch.zeros(BATCH, 1, dtype=torch.long), half, half], dim=1)
        self.streams_change = torch.randn(BATCH, self.tokens.shape[1], self.plain.d_model,
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


def _written(plain, n, length):
    """Each token where the summed probabilities reach a random number, every step from a pass over all before it."""
    chance = torch.rand(n, length - 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tokens = torch.zeros(n, 1, dtype=torch.long)
    for reach in chance.T:
        summed = plain.run(tokens).logits[:, -1].double().softmax(-1).cumsum(-1)
        tokens = torch.cat([tokens, (summed < reach[:, None] * summed[:, -1:]).sum(-1, keepdim=True)], 1)
    return tokens.float()


@cell("CleanRun.logits", lambda c: {"log p": c.plain.log_probs(c.tokens)})
def _(case):
    clean = clean_run.CleanRun(case.bridge, case.tokens)
    return {"log p": clean.logits(clean.residuals[-1]).log_softmax(-1)}


FROM = tuple((layer, start) for layer in range(families.LAYERS + 1) for start in (0, 4))


@cell("CleanRun.continue_from", each(FROM, lambda c, at: slow.continued(
    c.plain, c.tokens, at[0], c.streams_change[:, at[1]:], at[1])[:, at[1]:]))
def _(case):
    clean = clean_run.CleanRun(case.bridge, case.tokens)

    def go_on(case, at):
        layer, start = at
        new = clean.residuals[layer][:, start:] + case.streams_change[:, start:]
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


@cell("mlp_patch_sweep", each((False, True), lambda c, published: slow.mlp_sweep(c.plain, c.tokens, SEQ_LEN, published)))
def _(case):
    return each((False, True), lambda c, published: ablation.mlp_patch_sweep(
        c.bridge, c.tokens, SEQ_LEN, as_published=published))(case)


@cell("mlp_attribution_sweep", lambda c: {"": slow.mlp_attribution(c.plain, c.tokens, SEQ_LEN)})
def _(case):
    return {"": ablation.mlp_attribution_sweep(case.bridge, case.tokens, SEQ_LEN)}


@cell("head_attribution_scores", each(KINDS, lambda c, kind: slow.head_attribution(c.plain, c.tokens, SEQ_LEN, kind)))
def _(case):
    return each(KINDS, lambda c, kind: ablation.head_attribution_scores(c.bridge, c.tokens, kind, seq_len=SEQ_LEN))(case)


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
    return torch.stack([torch.stack([of(layer, head) for head in range(case.plain.n_heads)])
                        for layer in range(case.plain.n_layers)])


def _qk(case, distances):
    def rows(layer, head):
        return torch.stack([_read(circuits.full_QK_circuit(case.bridge, layer, head, distance=d), slow.QUERIES, slow.KEYS)
                            for d in distances])

    found = _scaled(case, _every_head(case, rows))
    return found - found.mean(-1, keepdim=True)


def _read(circuit, rows, columns):
    return circuit.A[rows] @ circuit.B[:, columns]


def _scaled(case, circuit):
    """Where queries have norms of their own, the scores that are compared with do not know the stream's scale."""
    return circuit


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


# --- judging -----------------------------------------------------------------------------------------------------------


@dataclass
class Verdict:
    kind: str                                                       # right, refused, WRONG, CRASH
    reason: str = ""
    worst: float = field(default=0.0)                               # largest difference, relative to the largest number


def judge(case: Case, name: str) -> Verdict:
    """One cell of the table."""
    course, slowly, compare = CELLS[name]
    try:
        with torch.enable_grad() if "attribution_s" in name else torch.no_grad():
            found = course(case)
    except Exception as error:  # noqa: BLE001 - whatever the course raises is what the table is about
        words = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        refused = NotForThisModel is not None and isinstance(error, NotForThisModel)
        return Verdict("refused", words.removeprefix("NotForThisModel: ")) if refused else Verdict("CRASH", words)
    try:
        with torch.no_grad():
            wanted = slowly(case)
    except OnlyRefusal as reason:
        return Verdict("WRONG", f"a number, but {reason}")
    worst, where = max((difference(found.get(key), wanted.get(key), compare), key) for key in {*found, *wanted})
    return Verdict("right", worst=worst) if worst < TOLERANCE else Verdict("WRONG", f"off by {worst:.2g} ({where})", worst)


def difference(found: torch.Tensor | None, wanted: torch.Tensor | None, compare: str) -> float:
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


def table(names: list[str], functions: list[str]) -> dict[str, dict[str, Verdict]]:
    """{family: {function: verdict}}. What does not load right is asked nothing else."""
    out = {}
    for name in names:
        case = Case(name)
        out[name] = {"load": judge(case, "load")}
        if out[name]["load"].kind == "right":
            out[name] |= {function: judge(case, function) for function in functions if function != "load"}
        line = {kind: sum(each.kind == kind for each in out[name].values()) for kind in ("right", "refused", "WRONG", "CRASH")}
        print(f"{name:22}", "  ".join(f"{kind} {number:2}" for kind, number in line.items()), file=sys.stderr, flush=True)
    return out


def show(found: dict[str, dict[str, Verdict]], functions: list[str]) -> str:
    """The table, functions down and families across in pieces, and under it every reason."""
    lines, names = [], list(found)
    for start in range(0, len(names), 8):
        some = names[start:start + 8]
        lines.append(f"{'':27}" + "".join(f"{name[:14]:15}" for name in some))
        for function in functions:
            cells = (found[name].get(function, Verdict("-")).kind for name in some)
            lines.append(f"{function:27}" + "".join(f"{kind:15}" for kind in cells))
        lines.append("")
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for name in names:
        for function, verdict in found[name].items():
            if verdict.kind != "right":
                reasons.setdefault((verdict.kind, function, verdict.reason), []).append(name)
    lines += [f"{kind:8} {function:27} {', '.join(who)}: {reason}" for (kind, function, reason), who in
              sorted(reasons.items(), key=lambda item: (item[0][0] != "CRASH", item[0][0] != "WRONG", item[0]))]
    every = [verdict for row in found.values() for verdict in row.values()]
    counts = {kind: sum(each.kind == kind for each in every) for kind in ("right", "refused", "WRONG", "CRASH")}
    worst = max((each.worst for each in every if each.kind == "right"), default=0.0)
    lines.append("\n" + ", ".join(f"{number} {kind}" for kind, number in counts.items()) +
                 f"; the largest difference in a right cell is {worst:.1e}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("family", nargs="*", help=f"some of {', '.join(families.FAMILIES)}; default: all")
    parser.add_argument("--function", nargs="*", help=f"some of {', '.join(CELLS)}; default: all")
    chosen = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    found = table(chosen.family or list(families.FAMILIES), chosen.function or list(CELLS))
    print(show(found, chosen.function or list(CELLS)))
    return int(any(verdict.kind in ("WRONG", "CRASH") for row in found.values() for verdict in row.values()))


if __name__ == "__main__":
    sys.exit(main())
