"""Bytes of label tokens, against the text itself, for every sort of tokenizer that can be built here."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dataflex_tools.data.corpus import open_corpus
from dataflex_tools.data.sources import SourceSpec
from dataflex_tools.data.text_bytes import label_bytes, token_bytes
from dataflex_tools.data.tokenized import RenderSettings, tokenize_corpus
from tests.data.builders import byte_tokenizer, chat, write_jsonl

WORDS = (
    "the cat sat on the mat and a dog ran home while rain fell over \u6771\u4eac gr\u00f6\u00dfe na\u00efve \u00e9t\u00e9"
)
TRAINED_ON = [WORDS, "hello world, hello cat", "\u6771\u4eac\u306e\u96e8 and gr\u00f6\u00dfe"] * 4
ANSWERS = [
    "the cat sat",
    " on the mat, and ran",
    "gr\u00f6\u00dfe na\u00efve \u00e9t\u00e9",
    "\u6771\u4eac\u306e\u96e8 fell",
    "\U0001f642 \U0001f469\U0001f3fd\u200d\U0001f680!",
    "  two  spaces\n\tand a tab",
    "e\u0301",
    "",
]


def trained(model, trainer, **parts):
    backend = Tokenizer(model)
    for name, part in parts.items():
        setattr(backend, name, part)
    backend.train_from_iterator(TRAINED_ON, trainer)
    return backend


def wrapped(backend, **special):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", additional_special_tokens=["<|end|>"], **special
    )
    tokenizer.add_tokens(["<think>", "na\u00efve mark"])
    return tokenizer


def byte_level():
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    before = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return wrapped(trained(models.BPE(), trainer, pre_tokenizer=before, decoder=decoders.ByteLevel()))


def byte_fallback():
    """Built as Llama 2's: a space before the whole text, spaces as a letter, bytes for what is not in the vocabulary."""
    trainer = trainers.BpeTrainer(
        vocab_size=350, special_tokens=["<s>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))],
        limit_alphabet=30,
    )  # fmt: skip
    back = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    before = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    model = models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    backend = trained(model, trainer, normalizer=before, decoder=decoders.Sequence(back))
    return wrapped(backend, unk_token="<unk>")


def unigram():
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=["<s>", "</s>", "<unk>"], unk_token="<unk>")
    before, back = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return wrapped(trained(models.Unigram(), trainer, pre_tokenizer=before, decoder=back), unk_token="<unk>")


def word_piece():
    trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=["<s>", "</s>", "[UNK]"])
    before, back = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    model = models.WordPiece(unk_token="[UNK]")
    return wrapped(trained(model, trainer, pre_tokenizer=before, decoder=back), unk_token="[UNK]")


class Rows:
    """Rows of token ids, labels from a position on."""

    def __init__(self, ids, starts):
        self.ids, self.starts = ids, starts

    def labels(self, row):
        ids_T = np.array(self.ids[row], np.int64)
        return np.where(np.arange(len(ids_T)) < self.starts[row], -100, ids_T)


def after_prompt(tokenizer, texts):
    """Rows <s> prompt text </s>, the text tokenised apart from the prompt; label tokens begin with the text."""
    prompt = tokenizer("the cat", add_special_tokens=False).input_ids
    ids = [
        [tokenizer.bos_token_id, *prompt, *tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        for text in texts
    ]
    return Rows(ids, [1 + len(prompt)] * len(texts))


def bytes_of_level(token):
    """Bytes of a byte-level token, with the alphabet written out as in GPT-2's encoder."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    letters |= {chr(256 + number): byte for number, byte in enumerate(others)}
    return bytes(letters[letter] for letter in token)


def test_byte_level_is_exact_for_any_text():
    tokenizer = byte_level()
    found = label_bytes(after_prompt(tokenizer, ANSWERS), range(len(ANSWERS)), tokenizer)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, [len(text.encode()) for text in ANSWERS])


def test_byte_level_is_exact_when_cut_inside_a_character():
    tokenizer, every = byte_level(), []
    for text in ANSWERS:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        pieces = [bytes_of_level(token) for token in tokenizer.convert_ids_to_tokens(ids)]
        assert b"".join(pieces) == text.encode()
        rows = Rows([[0, *ids[:end]] for end in range(len(ids) + 1)], [1] * (len(ids) + 1))
        found = label_bytes(rows, range(len(ids) + 1), tokenizer)
        np.testing.assert_array_equal(found, [len(b"".join(pieces[:end])) for end in range(len(ids) + 1)])
        every += pieces
    assert not all(is_text(piece) for piece in every)


def is_text(piece):
    try:
        return bool(piece.decode())
    except UnicodeDecodeError:
        return False


def test_byte_fallback_is_exact_but_for_the_space_before_a_whole_text():
    tokenizer = byte_fallback()
    texts = [text for text in ANSWERS if text]
    whole = label_bytes(after_prompt(tokenizer, texts), range(len(texts)), tokenizer)
    np.testing.assert_array_equal(whole, [len(text.encode()) + 1 for text in texts])
    for text in texts:
        encoded = tokenizer("the" + text, add_special_tokens=False, return_offsets_mapping=True)
        begins = [start for start, _ in encoded.offset_mapping]
        # the bytes of one character all begin where it does: its first is a place to cut the text at
        cuts = [place for place in range(1, len(begins)) if begins[place] > begins[place - 1]]
        found = label_bytes(Rows([encoded.input_ids] * len(cuts), cuts), range(len(cuts)), tokenizer)
        np.testing.assert_array_equal(found, [len(("the" + text)[begins[place] :].encode()) for place in cuts])
    assert any(token.startswith("<0x") for text in texts for token in tokenizer.tokenize(text))


def test_byte_fallback_cut_inside_a_character_counts_the_bytes_before_the_cut():
    tokenizer = byte_fallback()
    ids = tokenizer("a \U0001f642", add_special_tokens=False).input_ids
    assert tokenizer.convert_ids_to_tokens(ids[-4:]) == ["<0xF0>", "<0x9F>", "<0x99>", "<0x82>"]
    rows = Rows([ids[: len(ids) - missing] for missing in range(4)], [len(ids) - 4] * 4)
    np.testing.assert_array_equal(label_bytes(rows, range(4), tokenizer), [4, 3, 2, 1])


def test_unigram_is_exact_for_characters_it_knows_and_skips_others():
    tokenizer = unigram()
    known = [
        "the cat sat",
        "on the mat and ran",
        "gr\u00f6\u00dfe na\u00efve \u00e9t\u00e9",
        "\u6771\u4eac\u306e\u96e8 fell",
    ]
    found = label_bytes(after_prompt(tokenizer, known), range(4), tokenizer)
    np.testing.assert_array_equal(found, [len(text.encode()) + 1 for text in known])
    rows = after_prompt(tokenizer, ["the \U0001f642 cat"])
    assert tokenizer.unk_token_id in rows.ids[0]
    assert label_bytes(rows, [0], tokenizer) == len(" the  cat")


def test_word_piece_counts_words_with_one_space_before_each():
    tokenizer = word_piece()
    texts = ["the cat sat", "the   cat\n\nsat", "gr\u00f6\u00dfe na\u00efve \u00e9t\u00e9", "hello world, hello cat"]
    found = label_bytes(after_prompt(tokenizer, texts), range(4), tokenizer)
    words = ["the cat sat", "the cat sat", "gr\u00f6\u00dfe na\u00efve \u00e9t\u00e9", "hello world, hello cat"]
    np.testing.assert_array_equal(found, [len((" " + text).encode()) for text in words])


@pytest.mark.parametrize("make", [byte_level, byte_fallback, unigram, word_piece])
def test_special_tokens_count_nothing_and_added_words_their_text(make):
    tokenizer = make()
    bytes_V = token_bytes(tokenizer)
    for token in ("<s>", "</s>", "<|end|>"):
        assert bytes_V[tokenizer.convert_tokens_to_ids(token)] == 0
    for text in ("<think>", "na\u00efve mark"):
        assert bytes_V[tokenizer.convert_tokens_to_ids(text)] == len(text.encode())
    assert len(bytes_V) == len(tokenizer)


@pytest.mark.parametrize("make", [byte_level, byte_fallback, unigram, word_piece])
def test_parts_of_a_row_add_up_to_the_row(make):
    tokenizer = make()
    for text in ANSWERS:
        ids = [0, *tokenizer(text, add_special_tokens=False).input_ids]
        whole = label_bytes(Rows([ids], [1]), [0], tokenizer)[0]
        for cut in range(1, len(ids) + 1):
            parts = Rows([ids[:cut], [0, *ids[cut:]]], [1, 1])
            assert label_bytes(parts, [0, 1], tokenizer).sum() == whole


def test_a_label_at_position_0_counts_nothing_as_it_has_no_loss():
    tokenizer = byte_level()
    ids = tokenizer("cat sat", add_special_tokens=False).input_ids
    first = len(bytes_of_level(tokenizer.convert_ids_to_tokens(ids[0])))
    assert label_bytes(Rows([ids], [0]), [0], tokenizer) == len("cat sat") - first


def test_rows_come_in_the_order_asked_for():
    tokenizer = byte_level()
    rows = after_prompt(tokenizer, ANSWERS)
    order = [4, 0, 4, 2]
    np.testing.assert_array_equal(label_bytes(rows, order, tokenizer), [len(ANSWERS[row].encode()) for row in order])
    assert label_bytes(rows, [], tokenizer).shape == (0,)


def test_unused_ids_are_0_and_later_ids_keep_their_place():
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "cat": 1, "dogs": 9}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    bytes_V = token_bytes(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"))
    np.testing.assert_array_equal(bytes_V, [0, 4, 0, 0, 0, 0, 0, 0, 0, 5])  # " cat", " dogs"


def test_a_vocabulary_without_a_word_is_counted_as_decoded():
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "1": 1, "+-": 2}, unk_token="<unk>"))
    np.testing.assert_array_equal(
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")), [0, 1, 2]
    )


def test_answers_of_a_corpus_have_the_bytes_of_their_text(tmp_path):
    texts = ["It is gr\u00f6\u00dfer.", "\u6771\u4eac \U0001f642", "x"]
    path = write_jsonl(tmp_path / "pool.jsonl", [chat("Say it.", text) for text in texts])
    tokenizer = byte_tokenizer()
    corpus = open_corpus([SourceSpec(path=str(path))], tmp_path / "cache", group="domain")
    tokens = tokenize_corpus(corpus, tokenizer, RenderSettings(), tmp_path / "cache", tokenizer_sha256="0" * 64)
    # the template ends an answer with a special token and a line break, both trained on
    np.testing.assert_array_equal(label_bytes(tokens, range(3), tokenizer), [len(f"{text}\n".encode()) for text in texts])
