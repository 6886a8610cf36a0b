"""Pairs of texts: one fact apart, in the language as its own grammar has it, and answers that the truth allows."""

import pytest
import small_models
import torch

from course_utils import story_grammar as grammar
from course_utils.language import StoryLanguage, expand, templates
from course_utils.pairs import giver_pairs, number_pairs, own_pairs, sex_pairs

WORDS = StoryLanguage()


def texts(pairs):
    return [(WORDS.decode(a).split(), WORDS.decode(b).split()) for a, b in zip(pairs.clean, pairs.corrupted)]


def is_a_sentence(words, kinds):
    """Whether a template of the grammar begins so, its slots filled from these lists."""
    def fits(symbol, word):
        return word in kinds[symbol] if symbol.startswith("{") else word == symbol

    lines = [symbols for text in (grammar.OPENINGS, grammar.MIDDLES) for _, template in templates(text)
             for symbols in expand(template)]
    return any(len(symbols) >= len(words) and all(s in kinds or not s.startswith("{") for s in symbols[:len(words)])
               and all(map(fits, symbols, words)) for symbols in lines)


NAMES = grammar.WOMEN + grammar.MEN
KINDS = {"{new}": NAMES, "{who}": NAMES, "{scene}": grammar.PLACES, "{far}": grammar.PLACES, "{here}": grammar.PLACES,
         "{beast}": grammar.BEASTS, "{beasts}": grammar.HERDS, "{mood}": grammar.MOODS,
         "{weather}": grammar.WEATHERS, "{quality}": grammar.QUALITIES}


@pytest.mark.parametrize("then", ["", "NAME felt sad and proud .", "The PLACE was foggy and big ."])
def test_a_pair_differs_in_the_name_alone_and_each_has_its_pronoun(then):
    pairs = sex_pairs(small_models.tiny(), 9, seed=3, then=then)
    assert pairs.clean.shape == pairs.corrupted.shape == (9, 10 + len(then.split()))
    for i, (clean, corrupted) in enumerate(texts(pairs)):
        changed = [(a, b) for a, b in zip(clean, corrupted) if a != b]
        (first, second), = set(changed)
        assert len(changed) == 1 + then.count("NAME")
        assert (first in grammar.WOMEN) == (second in grammar.MEN) == (i % 2 == 0)
        assert WORDS.decode([pairs.right[i], pairs.wrong[i]]) == ("She He" if first in grammar.WOMEN else "He She")
        for text in (clean, corrupted):
            assert is_a_sentence(text[1:10], KINDS) and (not then or is_a_sentence(text[10:], KINDS))


def test_an_animal_and_many_of_it():
    pairs = number_pairs(small_models.tiny(), 8, seed=1)
    for i, (clean, corrupted) in enumerate(texts(pairs)):
        (a, b), = [(a, b) for a, b in zip(clean, corrupted) if a != b]
        one, many = (a, b) if i % 2 == 0 else (b, a)
        assert grammar.BEASTS.index(one) == grammar.HERDS.index(many)
        assert WORDS.decode([pairs.right[i], pairs.wrong[i]]) == ("was were" if i % 2 == 0 else "were was")
        assert is_a_sentence(clean[10:] + [("was", "were")[i % 2]], KINDS)
        assert is_a_sentence(corrupted[10:] + [("were", "was")[i % 2]], KINDS)


@torch.no_grad()
@pytest.mark.parametrize("make", [sex_pairs, number_pairs])
def test_tiny_knows_the_answers(make):
    model = small_models.tiny()
    pairs = make(model, 20, seed=5)
    for tokens, sign in ((pairs.clean, 1), (pairs.corrupted, -1)):
        logits = model(tokens)[range(20), -1]
        assert (sign * (logits[range(20), pairs.right] - logits[range(20), pairs.wrong]) > 2).all()


def test_the_seed_decides_and_pairs_can_be_cut():
    model = small_models.tiny()
    first, again, other = (sex_pairs(model, 6, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.clean, again.clean) and not torch.equal(first.clean, other.clean)
    assert len(first[2:5]) == 3 and torch.equal(first[2:5].right, first.right[2:5])


def test_any_model_has_pairs_of_its_own_text():
    model = small_models.multi_head()
    pairs = own_pairs(model, 5, 8, seed=2)
    assert ((pairs.clean != pairs.corrupted).sum(dim=1) == 1).all() and (pairs.clean != pairs.corrupted)[:, 4].all()
    with torch.no_grad():
        before, after = (model(each)[range(5), -1].softmax(-1) for each in (pairs.clean, pairs.corrupted))
    assert (before[range(5), pairs.right] > after[range(5), pairs.right]).all()
    assert (before[range(5), pairs.wrong] < after[range(5), pairs.wrong]).all()


def test_a_model_that_reads_no_stories_or_no_english_is_refused_in_words():
    model = small_models.multi_head()
    with pytest.raises(ValueError, match="does not read the course's language"):
        sex_pairs(model, 2)
    with pytest.raises(ValueError, match="no single tokens for English names"):
        giver_pairs(model, 2)
    for make in (sex_pairs, number_pairs):
        with pytest.raises(ValueError, match="must be positive"):
            make(small_models.tiny(), 0)


@pytest.mark.parametrize("load", [small_models.english, pytest.param(small_models.smollm2, marks=pytest.mark.matrix)])
def test_the_giver_decides_in_english(load):
    model = load()
    pairs = giver_pairs(model, 6)
    for i in range(6):
        clean, corrupted = (model.tokenizer.decode(each[i, 1:]) for each in (pairs.clean, pairs.corrupted))
        right, wrong = (model.tokenizer.decode(each[i:i + 1]).strip() for each in (pairs.right, pairs.wrong))
        assert f", {wrong} gave" in clean and f", {right} gave" in corrupted
        assert clean.split(",")[0] == corrupted.split(",")[0] and {right, wrong} <= set(clean.replace(",", "").split())
