"""The tokenizer: one token a word, and CLIPTokenizer reads the files."""

import json

import pytest

from retrace.demo import models, tokenizer, world

START, END = "<|startoftext|>", "<|endoftext|>"


@pytest.fixture(scope="module")
def clip():
    """The tokenizer of transformers on the files of the pack."""
    transformers = pytest.importorskip("transformers")
    return transformers.CLIPTokenizer.from_pretrained(models.WEIGHTS / "tokenizer")


def test_writing_gives_the_files_of_the_pack(tmp_path):
    count = tokenizer.write(tmp_path, models.MAX_TOKENS)
    for path in tmp_path.iterdir():
        stored = models.WEIGHTS / "tokenizer" / path.name
        assert path.read_text(encoding="utf-8") == stored.read_text(encoding="utf-8"), path.name
    vocabulary = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    assert sorted(vocabulary.values()) == list(range(count))
    assert vocabulary[START] == count - 2 and vocabulary[END] == count - 1


def test_clip_gives_each_word_one_token_and_reads_captions_there_and_back(clip):
    assert [clip.tokenize(word) for word in tokenizer.WORDS] == [[word + "</w>"] for word in tokenizer.WORDS]
    assert len(clip.tokenize("zebra")) > 1
    for scene in list(world.scenes())[::17]:
        ids = clip(scene.caption).input_ids
        assert len(ids) == len(scene.caption.split()) + 2 <= models.MAX_TOKENS
        assert ids[0] == clip.convert_tokens_to_ids(START) and ids[-1] == clip.convert_tokens_to_ids(END)
        assert clip.decode(ids, skip_special_tokens=True).strip() == scene.caption


def test_any_text_can_be_read(clip):
    assert all(0 <= i < len(clip) for i in clip("ÄÖÜ 日本 🙂, (RED)!\n\t").input_ids)
    assert clip("A Big RED Circle").input_ids == clip("a big red circle").input_ids
