"""Text for a model to read: stories, what it writes itself, and the stories as English."""

import re
import types

import pytest
import small_models
import torch
from small_models import forbidden_forward

from course_utils import text
from course_utils.language import StoryLanguage
from course_utils.text import own_text, reads_stories, sample_text, stories_in_english


@pytest.fixture(params=list(small_models.RANDOM))
def model(request):
    return small_models.RANDOM[request.param]()


def test_a_model_that_reads_stories_gets_stories_and_others_their_own_text(model):
    tiny = small_models.tiny()
    assert reads_stories(tiny) and not reads_stories(model)
    assert torch.equal(sample_text(tiny, 3, 20, seed=4), StoryLanguage(4).sample(3, 20, truth=False).tokens)
    assert torch.equal(sample_text(model, 3, 20, seed=4), own_text(model, 3, 20, seed=4))


def test_own_text_comes_from_its_seed_and_from_nothing_else(model):
    before = torch.random.get_rng_state()
    one = own_text(model, 6, 10, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(own_text(model, 6, 10, seed=3), one)
    assert not torch.equal(own_text(model, 6, 10, seed=4), one)
    assert one.shape == (6, 10) and (one[:, 0] == 0).all() and one.dtype == torch.long
    assert len(one.unique(dim=0)) == 6                              # the rows differ


def test_own_text_is_the_same_in_one_batch_and_in_several(model, monkeypatch):
    whole = own_text(model, 70, 6, seed=3)
    monkeypatch.setattr(text, "KEYS_AT_ONCE", 0)                    # batches of 32, the fewest
    assert torch.equal(own_text(model, 70, 6, seed=3), whole) and whole.shape == (70, 6)


def chi_square(drawn, p):
    """By how many standard deviations Σ (found − expected)² / expected exceeds its mean; rare tokens together."""
    found, expected = torch.bincount(drawn, minlength=len(p)).double(), len(drawn) * p.double()
    rare = expected < 5
    found, expected = (torch.cat([each[~rare], each[rare].sum()[None]]) for each in (found, expected))
    terms, free = (found - expected) ** 2 / expected.clamp_min(1), len(found) - 1
    return ((terms.sum() - free) / (2 * free) ** 0.5).item()


@pytest.mark.slow
def test_own_text_has_the_models_own_frequencies(model):
    """Of the first token, and of the second given the first; neither is the padding token, which is BOS here."""
    tokens = own_text(model, 4000, 4, seed=1)
    p = model(tokens[:1, :1])[0, -1].softmax(-1)
    p = torch.where(torch.arange(len(p)) > 0, p, 0) / p[1:].sum()
    assert (tokens[:, [1, 3]] > 0).all() and (model(tokens[:1])[0, 1:].softmax(-1)[:, 0] > 0).all()
    assert chi_square(tokens[:, 1], p) < 5 < chi_square(tokens[:, 1], p**0.8 / (p**0.8).sum())
    first = int(tokens[:, 1].bincount().argmax())
    after = tokens[tokens[:, 1] == first]
    p = model(after[:1, :2])[0, -1].softmax(-1)
    assert len(after) > 300 and chi_square(after[:, 2], p) < 5


def test_bos_can_be_drawn_and_does_not_end_a_row():
    """Nothing stops at the end-of-text token, which is BOS here: the rest of the row is as likely as any."""
    tokens = own_text(small_models.grouped_query(), 300, 12, seed=0)
    rows = (tokens[:, 1:6] == 0).any(dim=1)
    assert rows.sum() > 5 and (tokens[rows, 6:] != 0).float().mean() > 0.5


def assert_prose(rows, length, seed):
    """Each row is a story's beginning, written as one writes it."""
    language = StoryLanguage(seed)
    for prose, story in zip(rows, language.sample(len(rows), length, truth=False).tokens[:, 1:].tolist()):
        assert not re.search(r"\s[,.!?;:]|\s\s|<bos>", prose)
        words = re.sub(r"([,.!?;:])", r" \1", prose).split(" ")
        assert len(words) > 20                                      # the last word may be cut
        assert words[:-1] == [language.vocabulary[token] for token in story][: len(words) - 1]


class Letters:
    """A tokenizer with one token for each letter."""

    bos_token_id = 0

    def __call__(self, text, add_special_tokens):
        assert not add_special_tokens                               # BOS is put there once
        return {"input_ids": [ord(letter) for letter in text]}


def test_stories_in_the_tokens_of_another_model():
    model = types.SimpleNamespace(cfg=types.SimpleNamespace(n_ctx=200, d_vocab=200, device="cpu"), tokenizer=Letters())
    tokens = stories_in_english(model, 4, 150, seed=8)
    assert tokens.shape == (4, 150) and (tokens[:, 0] == 0).all() and tokens[:, 1:].min() > 0
    assert_prose(["".join(map(chr, row)) for row in tokens[:, 1:].tolist()], 150, 8)
    assert torch.equal(tokens, stories_in_english(model, 4, 150, seed=8))
    assert not torch.equal(tokens, stories_in_english(model, 4, 150, seed=9))


@pytest.mark.slow
@pytest.mark.matrix  # in make test the lessons' stored outputs rest on it
def test_stories_in_the_tokens_of_smollm2():
    model = small_models.smollm2()
    tokens = stories_in_english(model, 16, 128, seed=2)
    assert tokens.shape == (16, 128) and (tokens[:, 0] == model.tokenizer.bos_token_id).all()
    assert_prose(model.tokenizer.batch_decode(tokens[:, 1:], clean_up_tokenization_spaces=False), 128, 2)


@pytest.mark.parametrize("write", [sample_text, own_text, stories_in_english])
def test_sizes_that_do_not_fit_are_refused(model, write):
    for wrong, says in (({"n": 0}, "n is 0 and length 8"), ({"n": -1}, "n is -1"), ({"length": 1}, "length 1;"),
                        ({"length": 65}, "length 65; n must be positive and length from 2 to 64")):
        with forbidden_forward(model), pytest.raises(ValueError, match=says):
            write(model, **{"n": 2, "length": 8, **wrong})
    assert write(model, 1, 2).shape == (1, 2)
