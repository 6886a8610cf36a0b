"""The benchmarks: what is timed is timed in turn, memory is seen, and the numbers that they compare are right."""

import inspect

import pytest
import small_models
import torch

from benchmarks import ablations, gpt2_shape, growth, limits, measuring
from benchmarks.__main__ import main
from benchmarks.limits import Limit, Product
from benchmarks.measuring import Ratio, Turns, alone, take_turns
from benchmarks.registry import BENCHMARKS, as_markdown, row, select, speeds
from course_utils.ablation import mlp_patch_sweep

# --- timing --------------------------------------------------------------------------------------------------------


def test_every_other_round_runs_in_reverse_and_the_first_is_not_counted(monkeypatch):
    clock, calls = [0.0], []

    def call(name, seconds):
        calls.append(name)
        clock[0] += 100 if len(calls) <= 2 else seconds         # the first round takes longer
        return name

    monkeypatch.setattr(measuring.time, "perf_counter", lambda: clock[0])
    turns = take_turns({"ours": lambda: call("a", 2), "peer": lambda: call("b", 6)}, rounds=3, limit=lambda: 1.6)
    assert calls == list("ab" "ba" "ab" "ba")
    assert turns.seconds == {"ours": [2, 2, 2], "peer": [6, 6, 6], "limit": [1.6] * 3}
    assert turns.results["peer"] == "b" and turns.ratio("peer", "ours").median == 3


@pytest.mark.parametrize("n, first, last", [(4, None, None), (5, 1, 5), (7, 1, 7), (8, 2, 7), (9, 2, 8), (12, 3, 10)])
def test_the_interval_holds_the_median_nine_times_in_ten(n, first, last):
    """Which order statistics: of 8 rounds all but 2 · 9 / 256 = 7 % of samples have at least two on either side."""
    ratio = Ratio.of(list(range(n, 0, -1)))
    assert ratio.median == (n + 1) / 2
    assert (ratio.low, ratio.high) == ((first, last) if first else (-float("inf"), float("inf")))


def test_a_verdict_is_open_where_the_interval_holds_the_target():
    ratio = Ratio(3.0, low=2.9, high=3.2)
    assert [ratio.at_least(target) for target in (2.9, 3.0, 3.3)] == ["yes", "open", "NO"]
    assert [ratio.at_most(target) for target in (2.8, 3.0, 3.2)] == ["NO", "open", "yes"]
    assert str(ratio) == "3.00 (2.90–3.20)"


# --- limits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [3, 256, 10_000])
def test_blocks_have_the_multiply_adds_of_the_whole(size):
    whole = Product(1000, 7, 300, times=2, batch=5)
    part = whole.in_blocks(size)
    assert part.rows <= size and part.columns <= size and (part.inner, part.batch) == (7, 5)
    assert part.rows * part.columns * part.times == pytest.approx(1000 * 300 * 2)


def test_a_limit_is_its_products_or_its_bytes_whichever_take_longer(monkeypatch):
    monkeypatch.setattr(Product, "seconds", lambda self: self.times * self.rows * self.columns)
    monkeypatch.setattr(limits, "memory_rate", lambda: 10.0)
    products = [Product(20, 5, 30), Product(10, 5, 10, times=2)]
    assert Limit(products)() == 600 + 200
    assert Limit(products, moved=9000)() == 900
    assert Limit(products, moved=7000)() == 800


# --- memory --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_short_allocation_is_seen_and_what_was_there_before_is_not_extra():
    small = alone("allocation:prepare", "0", "300")
    large = alone("allocation:prepare", "200", "300")
    assert small.extra < 0.05
    assert large.extra == pytest.approx(0.2, abs=0.05)
    assert large.peak > 0.5 and large.seconds > 0


def test_an_error_in_the_other_process_is_shown():
    with pytest.raises(RuntimeError, match="measuring allocation:prepare many 0 failed:(.|\n)*invalid literal"):
        alone("allocation:prepare", "many", "0")


# --- the registry --------------------------------------------------------------------------------------------------


def test_unknown_names_are_an_error_that_lists_the_known_ones(capsys):
    with pytest.raises(ValueError, match="called sweep-tinny; there are: ") as error:
        select(["top-k", "sweep-tinny"])
    assert all(name in str(error.value) for name in BENCHMARKS) and len(BENCHMARKS) >= 5
    with pytest.raises(SystemExit):
        main(["sweep-tinny"])
    assert "called sweep-tinny; there are: " in capsys.readouterr().err


def test_a_table_lines_up_and_says_what_was_missed():
    lines = as_markdown([row("a", "1.00", "<= 2", True), row("longer", "3", "<= 2", False)]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == "| What | Measured | Wanted | Met |".split()
    assert lines[2].split() == "| a | 1.00 | <= 2 | yes |".split()
    assert lines[3].split() == "| longer | 3 | <= 2 | NO |".split()


def test_peers_and_the_limit_stand_beside_ours():
    turns = Turns({"ours": [2.0] * 5, "loop": [30.0] * 5, "batched": [8.0] * 5, "limit": [1.0] * 5}, {})
    loop, batched = speeds("sweep", turns, {"loop": 15, "batched": 5, "limit": 1.3})
    assert (loop["Peer"], loop["Peer / ours"], loop["Ours / limit"]) == (
        "loop", "15.00 (15.00–15.00)", "2.00 (2.00–2.00)")
    assert (loop["Wanted"], loop["Met"]) == ("peer >= 15, limit <= 1.3", "yes, NO")
    assert (batched["Peer / ours"], batched["Limit (s)"], batched["Met"]) == ("4.00 (4.00–4.00)", "", "NO")
    alone_ = speeds("call", Turns({"ours": [2.0] * 5}, {}), {})
    assert len(alone_) == 1 and alone_[0]["Peer"] == alone_[0]["Met"] == ""


@pytest.mark.slow
def test_one_benchmark_from_the_command_to_the_file(tmp_path, capsys):
    out = tmp_path / "results.md"
    main(["sweep-tiny", "--quick", "--out", str(out)])
    text = out.read_text(encoding="utf-8")
    assert "## sweep-tiny" in text and "seq_len 6" in text and "## top-k" not in text
    assert f"torch {torch.__version__.split('+')[0]}" in text and "torch threads" in text
    difference = next(line for line in text.splitlines() if "largest difference" in line)
    assert difference.split("|")[4].strip() == "yes"
    printed = capsys.readouterr().out
    assert all(line in printed for line in text.splitlines() if line)


@pytest.mark.matrix
@pytest.mark.parametrize("name", ["top-k", "composition", "detect-head"])
def test_the_others_run_and_find_no_difference(name):
    rows = BENCHMARKS[name](quick=True)
    assert all(each["Met"] == "yes" for each in rows if "difference" in each["What"] or "memory" in each["What"])


# --- what is measured ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sweep, batch, expected", [
    (ablations.naive_sweep, 2, 1 + 2 * 6), (ablations.batched_sweep, 1, 1 + 2)])
def test_the_naive_loop_makes_a_full_pass_for_each_entry_and_the_batched_one_fewer(sweep, batch, expected):
    model = small_models.multi_head()
    tokens, layers, passes = small_models.repeated(model, 6, batch=batch), [1, 0], []
    handle = model.blocks[0].register_forward_hook(lambda *_: passes.append(1))
    try:
        found = sweep(model, tokens, 6, layers)
    finally:
        handle.remove()
    assert len(passes) == expected
    torch.testing.assert_close(found, mlp_patch_sweep(model, tokens, 6, layers=layers), atol=1e-5, rtol=0)


@pytest.mark.parametrize("power", [0.5, 1, 2])
def test_the_exponent_of_a_power_is_found(power):
    sizes = [10, 20, 40, 80]
    assert growth.exponent(sizes, [3e-3 * size**power for size in sizes]) == pytest.approx(power)


def test_the_fastest_of_several_rounds_counts_and_calls_take_turns(monkeypatch):
    clock, calls, left = [0.0], [], {"a": [5, 2, 9], "b": [4, 4, 1]}

    def call(name):
        calls.append(name)
        clock[0] += left[name].pop(0)

    monkeypatch.setattr(measuring.time, "perf_counter", lambda: clock[0])
    assert growth.fastest([lambda: call("a"), lambda: call("b")], rounds=3) == [2, 1]
    assert calls == ["a", "b"] * 3


def test_smollm2_is_skipped_with_a_line_when_it_is_not_there(monkeypatch):
    monkeypatch.setattr(ablations, "is_cached", lambda name: False)
    (only,) = BENCHMARKS["sweep-smollm2"]()
    assert "not fetched" in only["What"] and only["Met"] == ""


@pytest.mark.parametrize("module", gpt2_shape.MODULES, ids=lambda module: module.__name__)
def test_every_public_function_is_measured_or_named_as_doing_no_work(module):
    short = module.__name__.split(".")[-1]
    public = {name for name, value in vars(module).items()
              if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")}
    measured = {name.split(".")[1] for name in gpt2_shape.CALLS if name.startswith(f"{short}.")}
    assert measured | gpt2_shape.NO_WORK[short] == public
    assert not measured & gpt2_shape.NO_WORK[short]


@pytest.mark.slow
def test_every_call_of_the_table_works():
    inputs = gpt2_shape.Inputs("tiny", 6)
    for name, call in gpt2_shape.CALLS.items():
        assert (call(inputs) is None) == (name == "nothing"), name


@pytest.mark.matrix
@pytest.mark.parametrize("name", gpt2_shape.LONG)
def test_every_long_call_works(name, monkeypatch):
    monkeypatch.setattr(gpt2_shape, "D_SAE", 64)
    assert gpt2_shape.prepare_long(name, "tiny", "128")() is not None
