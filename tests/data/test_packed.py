import hashlib
import logging
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
import torch
from tokenizers import Regex, normalizers
from transformers import AutoTokenizer

from dataflex_tools.artifact.signal import SignalStore
from dataflex_tools.core.errors import ConfigError, DataError
from dataflex_tools.data import pack_shards, packed
from dataflex_tools.data.corpus import open_corpus, overlap
from dataflex_tools.data.packed import PackSettings, blocks_digest, is_held_out, pack_corpus
from dataflex_tools.data.sources import SourceSpec
from dataflex_tools.score.engine import measure
from dataflex_tools.score.loss import TokenLossSignal
from dataflex_tools.score.settings import TokenLossSignalSettings
from tests.data.builders import CHATML, byte_tokenizer, chat, write_jsonl
from tests.helpers import FLOAT64
from tests.score.builders import ROUNDING, tiny_base
from tests.tiny import WORDS, make_model

SHA = "0" * 64


def texts_of(num, *, seed=0, longest=60):
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list("abc \u00e9"), size=rng.integers(1, longest))) + f"{seed}.{i}" for i in range(num)]


def corpus_of(tmp_path, **domains):
    specs = []
    for name, texts in domains.items():
        path = write_jsonl(tmp_path / f"{name}.jsonl", [{"text": text} for text in texts])
        specs.append(SourceSpec(path=str(path)))
    return open_corpus(specs, tmp_path / "cache", group="domain")


def pack(tmp_path, corpus, tokenizer=None, *, part="train", **settings):
    settings = PackSettings(**{"block_size": 16, **settings})
    return pack_corpus(corpus, tokenizer or byte_tokenizer(), settings, tmp_path / "cache", tokenizer_sha256=SHA, part=part)


def everything(blocks):
    """All that a reader can see of each block."""
    faces, ids = (blocks.input_ids, blocks.labels, blocks.starts, blocks.positions), map(bytes, blocks.ids_N16)
    names = [blocks.group_names[code] for code in blocks.group_N]
    columns = [[tuple(face(row).tolist()) for row in range(len(blocks))] for face in faces]
    return list(zip(ids, names, blocks.num_labels_N.tolist(), *columns, strict=True))


def naive(domains, tokenizer, *, block_size, shard, attend):
    """Blocks and tokens left over per domain, from the description, token by token."""
    found, left = [], []
    for name, texts in domains.items():
        rest = 0
        for first in range(0, len(texts), shard):
            stream = []  # (token, whether a document begins with it)
            for text in texts[first : first + shard]:
                ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
                stream += [(token, at == 0) for at, token in enumerate(ids)]
            while len(stream) >= block_size:
                found.append(naive_block(name, stream[:block_size], attend))
                stream = stream[block_size:]
            rest += len(stream)
        left.append(rest)
    return found, left


def naive_block(name, stream, attend):
    ids, labels, starts, positions = [], [], [], []
    for at, (token, begins) in enumerate(stream):
        ids.append(token)
        labels.append(-100 if at == 0 or (begins and not attend) else token)
        starts += [at] if begins else []
        positions.append(0 if at == 0 or (begins and not attend) else positions[-1] + 1)
    content = f"{SHA}/{len(ids)}/{attend}/".encode()
    content += b"".join(token.to_bytes(4, "little") for token in [*ids, *starts])
    num_labels = sum(label != -100 for label in labels)
    return (hashlib.sha256(content).digest()[:16], name, num_labels, *map(tuple, (ids, labels, starts, positions)))


@pytest.mark.parametrize("attend", [True, False])
@pytest.mark.parametrize(("block_size", "shard", "chars"), [(2, 3, 1), (16, 7, 100), (64, 10, 37), (150, 100, 1 << 20)])
def test_blocks_are_the_joined_documents_of_each_shard_cut_to_length(
    tmp_path, monkeypatch, block_size, shard, chars, attend
):
    monkeypatch.setattr(packed, "SHARD_DOCUMENTS", shard)
    monkeypatch.setattr(pack_shards, "_BATCH_CHARS", chars)
    # "long" is one document of many blocks; the first two of "even" end where a block of 16 does
    domains = {"web": texts_of(23), "long": ["ab" * 200, "c"], "even": ["x" * 15, "y" * 31, *texts_of(9, seed=1)]}
    expected, left = naive(domains, byte_tokenizer(), block_size=block_size, shard=shard, attend=attend)
    blocks = pack(tmp_path, corpus_of(tmp_path, **domains), block_size=block_size, attend_across_documents=attend)
    assert everything(blocks) == expected
    assert len(blocks) == len(expected)
    assert blocks.leftover_K.tolist() == left
    assert blocks.num_documents_K.tolist() == [23, 2, 11]
    sizes = [sum(block[1] == name for block in expected) for name in domains]
    assert blocks.num_tokens_K.tolist() == [size * block_size for size in sizes]
    rows = [blocks.domain_rows(code) for code in range(3)]
    assert [list(part) for part in rows] == [np.flatnonzero(blocks.group_N == code).tolist() for code in range(3)]
    assert blocks.counts == {"leftover_tokens": sum(left), "without_labels": sum(block[2] == 0 for block in expected)}


def test_the_face_is_that_of_tokens(tmp_path):
    blocks = pack(tmp_path, corpus_of(tmp_path, web=texts_of(23)))
    assert (blocks.ids_N16.shape, blocks.ids_N16.dtype) == ((len(blocks), 16), np.uint8)
    assert blocks.num_tokens_N.tolist() == [16] * len(blocks)
    assert {array.dtype for array in (blocks.num_tokens_N, blocks.num_labels_N, blocks.group_N)} == {np.dtype(np.int32)}
    faces = (blocks.input_ids, blocks.labels, blocks.starts, blocks.positions)
    assert [face(0).dtype for face in faces] == [np.int32, np.int64, np.int32, np.int64]
    assert blocks.rows_with_labels().tolist() == list(range(len(blocks)))
    assert blocks.largest_id() == max(byte_tokenizer()("".join(texts_of(23)))["input_ids"])
    for row in (-1, len(blocks)):
        with pytest.raises(IndexError, match=f"row {row} is outside the"):
            blocks.input_ids(row)


def test_a_block_of_one_token_documents_has_no_label_without_attention_across_them(tmp_path):
    tokenizer = byte_tokenizer("{% for m in messages %}{{ m.content }}{% endfor %}")
    corpus = open_corpus(
        [SourceSpec(path=str(write_jsonl(tmp_path / "a.jsonl", [chat("", letter) for letter in "abcdef"])))],
        tmp_path / "cache", group="domain",
    )  # fmt: skip
    blocks = pack(tmp_path, corpus, tokenizer, block_size=3, attend_across_documents=False)
    assert tokenizer.decode(np.concatenate([blocks.input_ids(0), blocks.input_ids(1)])) == "abcdef"
    assert blocks.num_labels_N.tolist() == [0, 0]
    assert blocks.rows_with_labels().tolist() == []
    assert blocks.positions(0).tolist() == [0, 0, 0]


def test_conversations_are_packed_as_their_template_shows_them(tmp_path):
    tokenizer, path = byte_tokenizer(), write_jsonl(tmp_path / "a.jsonl", [chat("Hi", "Yes")] * 3)
    corpus = open_corpus([SourceSpec(path=str(path))], tmp_path / "cache", group="domain")
    blocks = pack(tmp_path, corpus, tokenizer, block_size=len(tokenizer("iHYes\n\n")["input_ids"]))
    shown = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n" * 3
    assert shown.startswith(tokenizer.decode(np.concatenate([blocks.input_ids(row) for row in range(len(blocks))])))


def test_equal_blocks_share_an_id_and_ids_follow_what_a_model_would_see(tmp_path):
    texts = texts_of(10)
    corpus = corpus_of(tmp_path, a=texts, b=texts)
    blocks = pack(tmp_path, corpus)
    half = len(blocks) // 2
    np.testing.assert_array_equal(blocks.ids_N16[:half], blocks.ids_N16[half:])
    assert len({bytes(item) for item in blocks.ids_N16}) == half
    alone = pack(tmp_path, corpus, attend_across_documents=False)
    assert not {bytes(item) for item in blocks.ids_N16} & {bytes(item) for item in alone.ids_N16}


def test_the_digest_follows_tokenizer_block_size_and_attention_but_not_the_split():
    base = blocks_digest(PackSettings(), SHA)
    others = [PackSettings(block_size=512), PackSettings(attend_across_documents=False)]
    assert len({base, blocks_digest(PackSettings(), "1" * 64), *(blocks_digest(other, SHA) for other in others)}) == 4
    assert blocks_digest(PackSettings(held_out=0.1, seed=3), SHA) == base
    assert blocks_digest(PackSettings(), SHA, "2024-07-26") != base
    # an address that changed would have every stored token loss measured again
    assert base == "89b8678d6af1bfaaf889e311f3be820c45ca99be7f01a5d234ebeb006038e511"


def test_blocks_of_conversations_are_addressed_by_the_day_they_show(tmp_path):
    dated = byte_tokenizer("{{ strftime_now('%Y') }}" + CHATML)
    path = write_jsonl(tmp_path / "chat.jsonl", [chat("q", "a")])
    chats = open_corpus([SourceSpec(path=str(path))], tmp_path / "cache", group="domain")
    settings = {"block_size": 2}
    assert pack(tmp_path, chats, dated, **settings).render_digest != pack(tmp_path, chats, **settings).render_digest
    texts = corpus_of(tmp_path, a=texts_of(5))
    assert pack(tmp_path, texts, dated, **settings).render_digest == pack(tmp_path, texts, **settings).render_digest


def test_a_document_stays_in_its_part_when_others_come_go_or_move(tmp_path):
    texts, settings = texts_of(400), PackSettings(held_out=0.25)

    def kept(corpus):
        return {corpus.text(row): bool(out) for row, out in enumerate(is_held_out(corpus.ids_N16, settings))}

    split = kept(corpus_of(tmp_path, a=texts))
    assert kept(corpus_of(tmp_path, a=texts[::-1])) == split
    assert kept(corpus_of(tmp_path, a=texts[::3])) == {text: split[text] for text in texts[::3]}
    grown = kept(corpus_of(tmp_path, a=[*texts, *texts_of(50, seed=9)], b=texts[:20]))
    assert {text: grown[text] for text in texts} == split
    assert 70 < sum(split.values()) < 130  # 100 and 3.5 standard deviations
    ids_N16 = corpus_of(tmp_path, a=texts).ids_N16
    wider, other = (is_held_out(ids_N16, PackSettings(held_out=share, seed=seed)) for share, seed in ((0.5, 0), (0.25, 1)))
    assert not (is_held_out(ids_N16, settings) & ~wider).any()
    assert (is_held_out(ids_N16, settings) != other).any()


def test_the_split_is_the_keyed_hash_of_each_id():
    ids_N16 = np.random.default_rng(0).integers(0, 256, size=(50, 16)).astype(np.uint8)
    key = hashlib.sha256(b"7/held_out").digest()[:8]
    hashes = [hashlib.blake2b(bytes(row), key=key, digest_size=8).digest() for row in ids_N16]
    expected = [int.from_bytes(item, "little") / 2**64 < 0.4 for item in hashes]
    assert is_held_out(ids_N16, PackSettings(held_out=0.4, seed=7)).tolist() == expected


def test_the_parts_together_are_the_corpus_and_share_no_document(tmp_path):
    corpus = corpus_of(tmp_path, a=texts_of(60), b=[*texts_of(40, seed=1), *texts_of(60)[:20]])  # "b" holds texts of "a"
    is_out, seen = is_held_out(corpus.ids_N16, PackSettings(held_out=0.3)), {}
    for part, rows in (("train", np.flatnonzero(~is_out)), ("held_out", np.flatnonzero(is_out))):
        own = {"a": [corpus.text(row) for row in rows if row < 60], "b": [corpus.text(row) for row in rows if row >= 60]}
        blocks = pack(tmp_path, corpus, part=part, held_out=0.3)
        assert everything(blocks) == naive(own, byte_tokenizer(), block_size=16, shard=4096, attend=True)[0]
        assert blocks.num_documents_K.tolist() == [len(own["a"]), len(own["b"])]
        seen[part] = {*own["a"], *own["b"]}
    assert not seen["train"] & seen["held_out"]
    assert len(overlap(corpus.without(np.flatnonzero(is_out)), corpus.without(np.flatnonzero(~is_out)))) == 0


def files_of(tmp_path):
    return {path.name: path.read_bytes() for path in (tmp_path / "cache" / "blocks").rglob("*.arrow")}


def spy(monkeypatch, *, dies_at=None):
    """Rows packed, shard by shard; the process dies with the given one half done."""
    done, real = [], pack_shards._pack

    def pack_spied(corpus, rows_S, *rest):
        done.append(int(rows_S[0]))
        for number, batch in enumerate(real(corpus, rows_S, *rest)):
            if number == 1 and len(done) - 1 == dies_at:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(pack_shards, "_pack", pack_spied)
    return done


def test_a_killed_packing_goes_on_at_its_shard_and_ends_with_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "SHARD_DOCUMENTS", 10)
    monkeypatch.setattr(pack_shards, "_BATCH_CHARS", 50)
    texts = texts_of(30)
    whole = everything(pack(tmp_path / "whole", corpus_of(made(tmp_path / "whole"), a=texts)))
    with monkeypatch.context() as patch:
        done = spy(patch, dies_at=1)
        with pytest.raises(KeyboardInterrupt):
            pack(tmp_path, corpus_of(tmp_path, a=texts))
        assert done == [0, 10]
    assert len(files_of(tmp_path)) == 1
    done = spy(monkeypatch)
    assert everything(pack(tmp_path, corpus_of(tmp_path, a=texts))) == whole
    assert done == [10, 20]
    assert files_of(tmp_path) == files_of(tmp_path / "whole")


def made(folder):
    folder.mkdir()
    return folder


def test_more_documents_leave_full_shards_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "SHARD_DOCUMENTS", 10)
    a, b = texts_of(25), texts_of(20, seed=1)
    before = pack(tmp_path, corpus_of(tmp_path, a=a, b=b))
    files, done = files_of(tmp_path), spy(monkeypatch)
    grown = pack(tmp_path, corpus_of(tmp_path, a=[*a, *texts_of(3, seed=2)], b=[*b, *texts_of(1, seed=3)]))
    assert done == [20, 28 + 20]  # the last shard of "a", which was not full, and a new one of "b"
    assert files.items() <= files_of(tmp_path).items()
    old, new = everything(before), everything(grown)
    kept = len(everything(pack(tmp_path, corpus_of(tmp_path, a=a[:20]))))
    assert new[:kept] == old[:kept]
    rows = before.domain_rows(1)
    assert new[grown.domain_rows(1).start :][: len(rows)] == old[rows.start :]
    pack(tmp_path, corpus_of(tmp_path, a=a), block_size=8)
    assert len(done) == 2 + 3


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_ranks_begin_at_different_shards_and_all_end_with_the_same_blocks(tmp_path, monkeypatch, rank):
    monkeypatch.setattr(packed, "SHARD_DOCUMENTS", 10)
    domains = {"a": texts_of(10), "b": texts_of(20, seed=1)}
    alone = pack(tmp_path / "alone", corpus_of(made(tmp_path / "alone"), **domains))
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "3")
    done = spy(monkeypatch)
    assert everything(pack(tmp_path, corpus_of(tmp_path, **domains))) == everything(alone)
    assert done == [[0, 10, 20], [10, 20, 0], [20, 0, 10]][rank]
    assert files_of(tmp_path) == files_of(tmp_path / "alone")


def test_another_order_of_sources_gives_each_domain_the_same_blocks_and_packs_nothing_anew(tmp_path, monkeypatch):
    domains = {"a": texts_of(20), "b": texts_of(20, seed=1)}
    one = everything(pack(tmp_path, corpus_of(tmp_path, **domains)))
    done = spy(monkeypatch)
    other = pack(tmp_path, corpus_of(tmp_path, b=domains["b"], a=domains["a"]))
    assert other.group_names == ("b", "a")
    assert sorted(everything(other)) == sorted(one)
    assert done == []


def test_blocks_are_views_of_the_files(tmp_path):
    blocks = pack(tmp_path, corpus_of(tmp_path, a=texts_of(50)))
    spans = []
    with open("/proc/self/maps") as lines:
        for line in lines:
            if str(tmp_path / "cache" / "blocks") in line:
                spans.append([int(address, 16) for address in line.split()[0].split("-")])
    for row in range(len(blocks)):
        for array in (blocks.input_ids(row), blocks.starts(row)):
            address = array.__array_interface__["data"][0]
            assert any(begin <= address < end for begin, end in spans)
            assert not array.flags.owndata
            assert not array.flags.writeable


def test_memory_of_packing_does_not_grow_with_the_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(pack_shards, "_BATCH_CHARS", 4000)
    tokenizer, peaks = byte_tokenizer(), []
    for num in (40, 40, 800):  # the first one warms up
        corpus = corpus_of(tmp_path, a=texts_of(num, seed=num, longest=200))
        tracemalloc.start()
        blocks = pack(tmp_path / f"{len(peaks)}", corpus, tokenizer, block_size=512)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # the tokens of 800 documents are 4 bytes each in an array, 8 and more in a list
    assert peaks[2] - peaks[1] < 2 * blocks.num_tokens_K.sum()


def test_what_is_left_over_is_told_once_for_every_domain(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="flextools"):
        blocks = pack(tmp_path, corpus_of(tmp_path, web=["x" * 40], code=["y" * 20, "z" * 20]))
    assert blocks.leftover_K.tolist() == [41 % 16, 42 % 16]
    told = [line for line in caplog.messages if "left over" in line]
    assert told == ["train part: 4 blocks of 16 tokens from 3 documents; tokens left over: web 9, code 10"]


def test_domains_without_a_block_are_named_with_what_to_do(tmp_path):
    corpus = corpus_of(tmp_path, web=["x" * 40], code=["y" * 8, "z" * 3], law=["w" * 4])
    found = r"no block of 16 tokens in domain 'code' \(13 tokens in 2 training documents\); domain 'law' \(5 tokens in 1 "
    with pytest.raises(DataError, match=found + "training documents\\); lower pack.block_size, or give more text"):
        pack(tmp_path, corpus)
    with pytest.raises(DataError, match="no block of 4,096 tokens in domain 'web'.*'code'.*'law'"):
        pack(tmp_path, corpus, block_size=4096)
    with pytest.raises(DataError, match=r"domain 'code' has no document; leave it out, or give it some"):
        pack(tmp_path, corpus.without(np.array([1, 2])))
    few = corpus_of(tmp_path, a=texts_of(200), b=["q" * 99])
    settings = next(
        s for s in (PackSettings(held_out=0.1, seed=n) for n in range(99)) if not is_held_out(few.ids_N16, s)[-1]
    )
    found = r"no block of 16 tokens in domain 'b' \(0 tokens in 0 held-out documents\); raise pack.held_out \(0.1\), lower "
    with pytest.raises(DataError, match=found + "pack.block_size"):
        pack(tmp_path, few, part="held_out", held_out=0.1, seed=settings.seed)
    with pytest.raises(DataError, match=r"0 tokens in 0 training documents\); lower pack.held_out \(0.999\)"):
        pack(tmp_path, few, held_out=0.999, seed=0)


def test_wrong_settings_documents_and_tokenizers_are_named(tmp_path):
    for wrong, message in (
        ({"block_size": 1}, "pack.block_size is 1, wanted at least 2"), ({"held_out": 1.0}, "pack.held_out is 1.0, wanted"),
        ({"held_out": -0.1}, "wanted a share from 0"), ({"held_out": float("nan")}, "pack.held_out is nan"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            PackSettings(**wrong)
    corpus = corpus_of(tmp_path, a=texts_of(5))
    with pytest.raises(ConfigError, match="pack.held_out is 0, so nothing is held out; set it to a share"):
        pack(tmp_path, corpus, part="held_out")
    endless = byte_tokenizer()
    endless.eos_token = None
    with pytest.raises(ConfigError, match="has no eos_token"):
        pack(tmp_path, corpus, endless)
    path = write_jsonl(tmp_path / "chat.jsonl", [chat("q", "a"), chat("q", "a", "q", "b")])
    chats = open_corpus([SourceSpec(path=str(path))], tmp_path / "cache", group="domain")
    picky = byte_tokenizer("{% if messages|length > 2 %}{{ raise_exception('too long') }}{% endif %}" + CHATML)
    with pytest.raises(DataError, match=r"chat.jsonl row 2: the tokenizer's chat template refuses"):
        pack(tmp_path, chats, picky)
    mute = byte_tokenizer("{% for m in messages %}{{ m.content }}{% endfor %}")
    mute.backend_tokenizer.normalizer = normalizers.Replace(Regex("[a-z]"), "")
    with pytest.raises(DataError, match=r"chat.jsonl row 1 gives no token at all"):
        pack(tmp_path, chats, mute)


@pytest.fixture
def words(tmp_path):
    return AutoTokenizer.from_pretrained(make_model(tmp_path / "model"))


def sentences(num, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(1, 20))) + f" {i % 20}" for i in range(num)]


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_each_document_of_a_block_is_seen_as_if_alone_without_attention_across(tmp_path, words, kind):
    corpus = corpus_of(tmp_path, a=sentences(40))
    blocks = pack(tmp_path, corpus, words, block_size=48, attend_across_documents=False)
    model, rows = tiny_base(kind).double(), range(len(blocks))
    ids_BT = torch.tensor(np.stack([blocks.input_ids(row) for row in rows]), dtype=torch.long)
    position_BT = torch.from_numpy(np.stack([blocks.positions(row) for row in rows]))
    with torch.no_grad():
        packed_BTV = model(input_ids=ids_BT, position_ids=position_BT, use_cache=False).logits
        blind_BTV = model(input_ids=ids_BT, use_cache=False).logits
        for row in rows:
            edges = sorted({0, *blocks.starts(row).tolist(), 48})
            for begin, end in pairwise(edges):
                alone_TV = model(input_ids=ids_BT[row, begin:end][None], use_cache=False).logits[0]
                torch.testing.assert_close(packed_BTV[row, begin:end], alone_TV, **FLOAT64)
                assert begin == 0 or (blind_BTV[row, begin:end] - alone_TV).abs().max() > 1e-3
    assert len(rows) > 3


def test_token_losses_of_blocks_are_those_of_a_plain_forward(tmp_path, words):
    blocks = pack(tmp_path, corpus_of(tmp_path, a=sentences(40), b=sentences(20, seed=1)), words)
    model = tiny_base()
    signal = TokenLossSignal(model, TokenLossSignalSettings(storage="float32", part_rows=7, token_budget=64))
    store = SignalStore(tmp_path / "loss", {"kind": signal.kind, "settings": dict(signal.settings)}, signal.columns)
    assert measure(signal, blocks, store, title="test") == len({bytes(item) for item in blocks.ids_N16})
    seen = []
    for row_B, start_B1, value_S in store.lists(blocks.ids_N16, "token_loss").blocks():
        for row, start, end in zip(row_B, start_B1[:-1], start_B1[1:], strict=True):
            ids_T = torch.tensor(blocks.input_ids(row), dtype=torch.long)
            with torch.no_grad():
                logits_TV = model(input_ids=ids_T[None], use_cache=False).logits[0].double()
            expected = [-torch.log_softmax(logits_TV[at - 1], 0)[ids_T[at]].item() for at in range(1, 16)]
            np.testing.assert_allclose(value_S[start:end], expected, **ROUNDING)
            seen.append(int(row))
    assert sorted(seen) == list(range(len(blocks)))


def test_a_changed_block_is_never_used(tmp_path):
    corpus = corpus_of(tmp_path, a=texts_of(30))
    whole = everything(pack(tmp_path, corpus))
    [path] = (tmp_path / "cache" / "blocks").rglob("*.arrow")
    content = path.read_bytes()
    for place in range(0, len(content), len(content) // 14):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert everything(pack(tmp_path, corpus)) == whole
        assert path.read_bytes() == content
