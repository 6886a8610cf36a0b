"""Every public function on many families of models: right against a slow plain pass, or refused in words."""

import pytest
from families import FAMILIES
from family_cells import CELLS, Case, judge

FEW = ("llama-biased", "pythia", "gemma2")
QUICK = ("load", "CleanRun.continue_from", "mlp_ablation_scores", "direct_logit_attribution",
         "full_QK_circuit(distance)", "full_OV_circuit", "effective_embedding", "score_by_distance", "path_patching",
         "evaluate_sae(mlp_out)", "attribution_scores", "run_circuit", "setting", "attribution_graph", "run_features")


def bad_cells(name: str, functions) -> dict[str, str]:
    case = Case(name)
    load = judge(case, "load")
    if load.kind == "refused":
        return {}
    found = {"load": load} | {function: judge(case, function) for function in functions}
    return {function: f"{verdict.kind}: {verdict.reason}" for function, verdict in found.items()
            if verdict.kind not in ("right", "refused")}


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW)
def test_right_or_refused(name):
    assert bad_cells(name, QUICK) == {}


@pytest.mark.matrix
@pytest.mark.parametrize("name", FAMILIES)
def test_every_function_right_or_refused(name):
    assert bad_cells(name, CELLS) == {}
