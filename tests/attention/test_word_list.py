"""Words with numbers as people type them."""

import pytest

from retrace.attention.word_list import parse_weights, parse_windows, parse_words


def test_words_weights_and_windows():
    assert parse_words(" red, blue sky;cat#2\n\n") == [("red", None), ("blue sky", None), ("cat", 2)]
    weights = [(("red", None), 2.0), (("blue sky", None), -0.5), (("cat", 2), 10.0)]
    assert parse_weights("red:2, blue sky: -0.5 ,cat #2 :1e1") == weights
    windows = [(("lion", None), 0.0, 0.4), (("red car", None), 0.1, 0.6), (("cat", 1), 0.2, 1.0)]
    assert parse_windows("lion:0.4; red car:.1-0.6,cat#1: 0.2 - 1") == windows
    assert parse_words("") == parse_weights(" ,") == parse_windows("\n") == []


@pytest.mark.parametrize(
    ("read", "text", "said"),
    [
        (parse_words, "#2", "words must read like"),
        (parse_weights, "red", "weights must read like"),
        (parse_weights, "red:much", "weight of 'red' must be a number, got 'much'"),
        (parse_weights, "red:nan", "weight of 'red' must be a number"),
        (parse_weights, "red:1e999", "weight of 'red' must be a number"),
        (parse_weights, ":2", "weights must read like"),
        (parse_windows, "red:0.6-0.2", "schedule of 'red' must lie between 0 and 1, got '0.6-0.2'"),
        (parse_windows, "red:1.5", "schedule of 'red' must lie between"),
        (parse_windows, "red:early", "schedule of 'red' must lie between"),
    ],
)
def test_refusals(read, text, said):
    with pytest.raises(ValueError, match=said):
        read(text)
