"""Words are found in the pieces of each kind of vocabulary."""

import pytest

from retrace.attention.pieces import find, piece_text, style_of


def read(pieces):
    style = style_of(pieces)
    return [piece_text(piece, style) for piece in pieces]


CLIP = read(["a</w>", "photo</w>", "of</w>", "a</w>", "sky", "scra", "per</w>", ",</w>", "at</w>", "night</w>"])
T5 = read(["▁A", "▁photo", "▁of", "▁", "a", "▁sky", "s", "craper", ",", "▁at", "▁night"])
BYTES = read(["A", "Ġphoto", "Ġof", "Ġa", "Ġsk", "ys", "craper", ",", "Ġat", "Ġnight"])


@pytest.mark.parametrize(
    ("texts", "photo", "tower"),
    [(CLIP, (1,), (4, 5, 6)), (T5, (1,), (5, 6, 7)), (BYTES, (1,), (4, 5, 6))],
    ids=["clip", "t5", "qwen"],
)
def test_words_of_one_and_of_several_pieces(texts, photo, tower):
    assert find(texts, "photo") == [photo]
    assert find(texts, "SkyScraper") == [tower] and find(texts, "skyscraper,") == [(*tower, tower[-1] + 1)]
    # The lone space that T5 puts before an article belongs to no word.
    assert find(texts, "photo  of a") == [tuple(i for i in range(photo[0], tower[0]) if texts[i] != b" ")]
    assert find(texts, "sky") == find(texts, "scraper") == find(texts, "phot") == find(texts, "") == []
    assert find(texts, "sky scraper") == find(texts, "photoof") == []
    assert find(CLIP, "a") == [(0,), (3,)]


def test_digits_and_apostrophes_are_parted_by_some_vocabularies():
    # CLIP parts each digit and "'s" from what they touch.
    texts = read(["the</w>", "dog</w>", "'s</w>", "2</w>", "0</w>", "toys</w>"])
    assert find(texts, "dog's") == [(1, 2)] and find(texts, "dog") == [(1,)] and find(texts, "20 toys") == [(3, 4, 5)]


def test_letters_beyond_ascii_may_be_spread_over_pieces():
    # The bytes of é are written as Ã and ©, those of 猫 as ç, Į and «.
    texts = read(["caf", "Ã", "©", "Ġç", "Į", "«", "Ġis"])
    assert find(texts, "café") == find(texts, "CAFÉ") == [(0, 1, 2)] and find(texts, "猫") == [(3, 4, 5)]
    assert find(read(["▁caf", "<0xC3>", "<0xA9>"]), "café") == [(0, 1, 2)]
    # A script without spaces has a word in each letter.
    assert find(read(["▁", "黒猫", "が"]), "猫") == [(1,)]


def test_a_piece_that_stands_for_nothing_hides_no_word():
    assert find([b"", b" red", b"", b" cat"], "red cat") == [(1, 3)]
    # A lone continuation byte, as a prompt that was cut in the middle of a letter leaves it.
    assert find([b" red", b"\xa9", b"cat"], "red") == [(0,)]
