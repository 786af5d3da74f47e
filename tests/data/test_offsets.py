import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from dataflex_tools.data.offsets import span_of_token, starts_in, swallows_space, trims_offsets, with_exact_offsets
from tests.data.builders import byte_tokenizer

HEADER = "<|im_start|>assistant\n"


def labelled(tokenizer, text, *spans):
    exact = with_exact_offsets(tokenizer)
    encoded = exact(text, add_special_tokens=False, return_offsets_mapping=True)
    offset_T2, id_T = np.array(encoded["offset_mapping"]), np.array(encoded["input_ids"])
    added = frozenset(tokenizer.added_tokens_decoder)
    span_T = span_of_token(offset_T2, id_T, spans, text=text, added=added)
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    return [token for token, span in zip(tokens, span_T, strict=True) if span]


def merging_tokenizer():
    """Bytes, and two merges: of two line ends, and of a space and an H."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: code for code, token in enumerate([*alphabet, "\u010a\u010a", "\u0120H"])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("\u010a", "\u010a"), ("\u0120", "H")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def trimming_tokenizer(post_processor):
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = post_processor
    return tokenizer


TRIMMING = [
    processors.ByteLevel(trim_offsets=True),
    processors.Sequence([processors.ByteLevel(trim_offsets=True), processors.TemplateProcessing("$A", None, [])]),
    processors.RobertaProcessing(("</s>", 1), ("<s>", 0), trim_offsets=True),
]


@pytest.mark.parametrize("post_processor", TRIMMING)
def test_white_space_at_the_ends_of_an_answer_keeps_its_labels(post_processor):
    text = f"{HEADER} a\n<|im_end|>\nq"
    span = len(HEADER), len(text) - 1
    tokenizer = trimming_tokenizer(post_processor)
    before = tokenizer.backend_tokenizer.to_str()
    expected = labelled(byte_tokenizer(), text, span)
    assert expected == ["\u0120", "a", "\u010a", "<|im_end|>", "\u010a"]
    assert labelled(tokenizer, text, span) == expected
    assert tokenizer.backend_tokenizer.to_str() == before
    assert trims_offsets(tokenizer)
    assert not trims_offsets(byte_tokenizer())


def test_all_bytes_of_a_character_are_labelled():
    text = f"{HEADER}\u4e2d\U0001f600"
    assert len(labelled(byte_tokenizer(), text, (len(HEADER), len(text)))) == 7
    assert len(labelled(trimming_tokenizer(TRIMMING[0]), text, (len(HEADER), len(text)))) == 7
    vocab = {"<unk>": 0, "\u2581": 1, "a": 2, ":": 3, "</s>": 4} | {f"<0x{code:02X}>": 5 + code for code in range(256)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    assert labelled(tokenizer, "a:\u4e2da", (2, 4)) == ["<0xE4>", "<0xB8>", "<0xAD>", "a"]
    assert labelled(tokenizer, "\u4e2d:\u4e2d", (2, 3)) == ["<0xE4>", "<0xB8>", "<0xAD>"]


@pytest.mark.parametrize("answer", ["yes", "\nyes", "  yes"])
def test_a_header_that_takes_in_white_space_is_no_label(answer):
    tokenizer = byte_tokenizer()
    special = AddedToken("<|assistant|>", rstrip=True, special=True)
    tokenizer.add_special_tokens({"additional_special_tokens": [special]})
    text = f"q<|assistant|>\n{answer}"
    assert labelled(tokenizer, text, (len("q<|assistant|>\n"), len(text))) == ["y", "e", "s"]
    assert swallows_space(tokenizer)
    assert not swallows_space(byte_tokenizer())


def test_a_token_over_the_border_belongs_to_the_answer_if_it_holds_a_letter_of_it():
    tokenizer = merging_tokenizer()
    assert labelled(tokenizer, "a: Hi", (3, 5)) == ["\u0120H", "i"]
    assert labelled(tokenizer, "a\n\n Hi", (2, 6)) == ["\u0120H", "i"]
    assert labelled(tokenizer, "a\n\n Hi", (1, 6)) == ["\u010a\u010a", "\u0120H", "i"]


def test_headers_hold_the_tokens_that_begin_in_them():
    offset_T2 = np.array([[0, 1], [1, 3], [3, 4], [4, 6]])
    assert starts_in(offset_T2, [(1, 3)]).tolist() == [False, True, False, False]
    assert starts_in(offset_T2, [(0, 2), (4, 5)]).tolist() == [True, True, False, True]
