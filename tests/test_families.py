"""Every public function on many families of models: right against a slow plain pass, or refused in words."""

import pytest
from families import FAMILIES
from family_cells import CELLS, Case, judge

QUICK = ("load", "CleanRun.continue_from", "mlp_ablation_scores", "direct_logit_attribution",
         "full_QK_circuit(distance)", "full_OV_circuit", "effective_embedding", "score_by_distance", "path_patching",
         "evaluate_sae(mlp_out)", "attribution_scores", "run_circuit", "setting", "attribution_graph", "run_features")
# Families on which the course is to be right, and all that it may refuse there: what asks for the other kind of
# positions, and graphs where a norm stands between a block's parts and the stream.
ROTARY = {"positional_pattern"}
ADDED = {"full_QK_circuit(distance)", "score_by_distance"}
GRAPHS = {"exact_scores", "attribution_scores", "attribution_scores(steps)", "run_circuit", "FrozenModel",
          "attribution_graph", "interventions"}
MAY_REFUSE = {"gpt2": ADDED, "gpt-neo": ADDED, "opt": ADDED, "llama": ROTARY, "llama-biased": ROTARY,
              "mistral": ROTARY, "qwen2": ROTARY, "qwen3": ROTARY, "phi3": ROTARY, "pythia": ROTARY,
              "gemma2": ROTARY | GRAPHS, "gemma3": ROTARY | GRAPHS}


def bad_cells(name: str, functions) -> dict[str, str]:
    """{function: what is wrong}: another number, any other error, or a refusal where there should be a number."""
    case, may = Case(name), MAY_REFUSE.get(name, set(CELLS) | {"load"})
    found = {"load": judge(case, "load")}
    if found["load"].kind == "right":
        found |= {function: judge(case, function) for function in functions if function != "load"}
    return {function: f"{verdict.kind}: {verdict.reason}" for function, verdict in found.items()
            if verdict.kind not in ("right", "refused") or verdict.kind == "refused" and function not in may}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pythia", "gemma2", "gpt-neo"])
def test_right_or_refused(name):
    assert bad_cells(name, QUICK) == {}


@pytest.mark.matrix
@pytest.mark.parametrize("name", FAMILIES)
def test_every_function_right_or_refused(name):
    assert bad_cells(name, CELLS) == {}
