"""Words and tokens with the tokenizers that the host brings, in the key order of each family of models."""

import functools
import importlib.util
import types

import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.text_encoders.aura_t5
import comfy.text_encoders.flux
import comfy.text_encoders.hunyuan_video
import comfy.text_encoders.kandinsky5
import comfy.text_encoders.lt
import comfy.text_encoders.pixart_t5
import comfy.text_encoders.qwen_image
import comfy.text_encoders.sd3_clip
import torch
from helpers import refuses
from running import encode, shapes

TEXT = "A photo of a skyscraper, the red car's door & 2 cafés (at night:1.3), a red boat"
PHRASES = ("skyscraper", "red car's door", "CAFÉS", "at night", "2", "red boat", "photo  of a", "car")
# Tokens that the host cuts off in front of a prompt.
TEMPLATE = {"qwen": 34, "kandinsky5": 127, "kandinsky5 image": 41}


def _clip(tokenizer, **parts):
    """A CLIP of a real tokenizer; the encoder, whose weights nobody has here, only says which parts were loaded."""
    return types.SimpleNamespace(tokenizer=tokenizer, cond_stage_model=types.SimpleNamespace(**parts))


@functools.cache
def _families():
    """A CLIP of each family by name, and the rows that its keys come from."""
    of, sd3 = comfy.text_encoders, comfy.text_encoders.sd3_clip.SD3Tokenizer
    families = {
        "sd15": (_clip(comfy.sd1_clip.SD1Tokenizer()), "l"),
        "sdxl": (_clip(comfy.sdxl_clip.SDXLTokenizer()), "l"),
        "sd3": (_clip(sd3(), clip_l=1, clip_g=1, t5xxl=1), "l", "t5xxl"),
        "sd3 without T5": (_clip(sd3(), clip_l=1, clip_g=1, t5xxl=None), "l"),
        "sd3 T5 only": (_clip(sd3(), clip_l=None, clip_g=None, t5xxl=1), "t5xxl"),
        "flux": (_clip(of.flux.FluxTokenizer()), "t5xxl"),
        "ltx": (_clip(of.lt.LTXVT5Tokenizer()), "t5xxl"),
        "qwen": (_clip(of.qwen_image.QwenImageTokenizer()), "qwen25_7b"),
        # CLIP's rows are read for the pooled text alone.
        "kandinsky5": (_clip(of.kandinsky5.Kandinsky5Tokenizer(), clip_l=1), "qwen25_7b"),
        "kandinsky5 image": (_clip(of.kandinsky5.Kandinsky5TokenizerImage(), clip_l=1), "qwen25_7b"),
        "chroma": (_clip(of.pixart_t5.PixArtTokenizer()), "t5xxl"),
        "aura": (_clip(of.aura_t5.AuraT5Tokenizer()), "pile_t5xl"),
    }
    if importlib.util.find_spec("comfy.text_encoders.z_image"):  # newer hosts
        encoder = importlib.import_module("comfy.text_encoders.z_image")
        families["zimage"] = _clip(encoder.ZImageTokenizer()), "qwen3_4b"
    return families


def _read(pack, family, text):
    clip, *names = _families()[family]
    tokens = clip.tokenizer.tokenize_with_weights(text)
    length = sum(len(row) for name in names for row in tokens[name]) - TEMPLATE.get(family, 0)
    return pack.module("nodes.host.prompts").prompt_of(clip, text, tokens, length)


def _words(prompt, keys):
    tokens = [token for segment in prompt.segments for token in segment.tokens]
    return b"".join(tokens[i].text for i in keys).decode().replace(" ", "").lower()


def check_words_are_found_in_every_vocabulary(pack):
    """Phrases with punctuation, apostrophes, digits and accents, in one or two places of the key order."""
    for family in _families():
        prompt = _read(pack, family, TEXT)
        copies = len(prompt.segments)
        assert copies == (2 if family == "sd3" else 1), family
        for phrase in PHRASES:
            keys = prompt.find(phrase)
            folded = phrase.replace(" ", "").lower()
            assert _words(prompt, keys) == folded * copies, (family, phrase, _words(prompt, keys))
        assert _words(prompt, prompt.find("red")) == "redred" * copies
        assert prompt.find("red", 2) == tuple(k for k in prompt.find("red boat") if k in prompt.find("red")), family
        for absent in ("sky", "assistant", "user", "describe", "ca", "dog"):
            refuses(lambda p=prompt, w=absent: p.find(w), f"word {absent!r} must be in the prompt")


def check_sd3_counts_clip_before_t5(pack):
    """A word has two sets of keys; with more than 75 tokens the CLIP part has two rows."""
    prompt = _read(pack, "sd3", "a red cat")
    (first, second), tokens = prompt.find("cat"), prompt.segments[1].tokens
    assert first == 3 and tokens[second - 77].text == b" cat" and prompt.length == 154
    long = _read(pack, "sd3", "very " * 80 + "red cat")
    clip_keys = [k for k in long.find("cat") if k < 154]
    assert clip_keys == [77 + 1 + (82 - 75) - 1] and [len(s.tokens) for s in long.segments] == [154, 83], clip_keys


def check_a_prompt_as_long_as_a_row_of_clip_is_not_taken_for_one(pack):
    """Kandinsky 5 attends to Qwen's tokens alone, also where there are 77 of them."""
    for family in ("kandinsky5", "kandinsky5 image"):
        prompt = _read(pack, family, "very corgi " * 18 + "very very red cat")
        assert prompt.length == 77 and _words(prompt, prompt.find("red")) == "red", (family, prompt.length)
        assert [segment.name for segment in prompt.segments] == ["qwen25_7b"], family


def check_token_maps_of_real_tokenizers(pack):
    """Equal prompts give the identity, weights in parentheses change nothing, a swap keeps the tail."""
    module = pack.module("attention.token_map")
    for family in _families():
        read = functools.partial(_read, pack, family)
        for mode in ("replace", "refine"):
            for text in ("", TEXT, "a cat " * 90):
                tokens = module.token_map(read(text), read(text), mode)
                assert torch.equal(tokens.matrix, torch.eye(tokens.source.length)) and bool((tokens.alpha == 1).all())
        one, other = read("a photo of a skyscraper at night"), read("a photo of an umbrella factory at night")
        tokens = module.token_map(one, other, "replace")
        torch.testing.assert_close(tokens.matrix.sum(1), torch.ones(one.length))
        for i, j in zip(one.find("at night"), other.find("at night"), strict=True):
            assert tokens.matrix[i, j] == 1.0 and tokens.matrix[:, j].sum() == 1.0, (family, i, j)
        mass = tokens.matrix[list(one.find("a skyscraper"))].sum(0)
        assert not mass[[j for j in range(other.length) if j not in other.find("an umbrella factory")]].any(), family
        if family not in (*TEMPLATE, "zimage"):  # there the parentheses are part of the prompt
            both = plain, heavy = read("a red cat on a mat"), read("a (red:1.3) cat (on a mat)")
            swapped = [module.token_map(plain, to, "refine") for to in both]
            words = [[i for s in p.segments for i, t in enumerate(s.tokens) if t.role == "word"] for p in both]
            if len(words[0]) == len(words[1]):
                assert torch.equal(swapped[0].matrix, swapped[1].matrix), family
            for word in ("red", "cat", "on a mat"):
                rows, columns = list(plain.find(word)), list(heavy.find(word))
                assert bool((swapped[1].matrix[rows, columns] == 1).all()), (family, word)


def check_demo_prompts_are_encoded_with_their_tokens(pack):
    """The whole way on a CLIP with weights: as many keys as the conditioning has, and its bits are the host's."""
    clip = shapes(pack)[1]
    for text in ("a big red circle on a blue background", "", "red " * 200):
        prompt, conditioning = pack.module("nodes.host.prompts").encode(clip, text)
        plain = encode(clip, text)
        assert torch.equal(conditioning[0][0], plain[0][0]) and prompt.length == plain[0][0].shape[1]
    refuses(lambda: pack.module("nodes.host.prompts").encode(None, "a"), "clip must be connected")


def check_learnt_embeddings_are_tokens_by_their_values(pack):
    """An embedding counts as one token a row; it is aligned with itself and found by no word."""
    clip = _clip(comfy.sd1_clip.SD1Tokenizer())
    tokens = clip.tokenizer.tokenize_with_weights("a red cat")
    learnt = torch.randn(768, generator=torch.Generator().manual_seed(0))
    tokens["l"][0][2] = (learnt, 1.0)
    read = pack.module("nodes.host.prompts").prompt_of
    prompt = read(clip, "a embedding:x cat", tokens, 77)
    tokens_map = pack.module("attention.token_map").token_map(prompt, prompt, "refine")
    assert torch.equal(tokens_map.matrix, torch.eye(77)) and prompt.find("cat") == (3,)
    refuses(lambda: prompt.find("red"), "must be in the prompt")
    refuses(lambda: read(clip, "a", tokens, 99), "clip must encode each token to one key", "77 tokens of l")
