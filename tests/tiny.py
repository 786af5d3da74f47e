"""A tiny model, tokenizer and pool on disk, built in code: everything a stage needs, in a second and without a network."""

import json
import random
from pathlib import Path

WORDS = "red green blue seven three nine cat dog bird run jump sing the a of and to in is was".split()
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def make_model(folder: Path, *, kind: str = "llama", seed: int = 0, num_positions: int = 128) -> Path:
    """A 2-layer, 32-wide model with random weights and a word-level chat tokenizer, saved as transformers saves them."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    marks = ["<pad>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "\n", "<unk>"]
    vocab = {word: i for i, word in enumerate([*marks, *WORDS, *map(str, range(20))])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split("\n", "isolated")]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<|end|>", unk_token="<unk>",
        additional_special_tokens=["<|user|>", "<|assistant|>", "<|system|>"],
    )  # fmt: skip
    tokenizer.chat_template = CHAT
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=num_positions, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def records(num: int, *, seed: int = 0, kind: str = "count") -> list[dict[str, str]]:
    """Alpaca records of one of two kinds: "count" answers with numbers, "say" with words."""
    rng = random.Random(f"{kind}/{seed}")
    out = []
    for i in range(num):
        asked = " ".join(rng.choices(WORDS, k=rng.randint(2, 12)))
        pool = [str(n) for n in range(20)] if kind == "count" else WORDS
        answer = " ".join(rng.choices(pool, k=rng.randint(1, 8)))
        out.append({"instruction": f"{asked} {i % 20}", "input": "", "output": answer})
    return out


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def score_config(root: Path, **changes: object) -> dict[str, object]:
    """Settings of a LESS score stage that takes a few seconds; files are expected under `root`."""
    config: dict[str, object] = {
        "method": "less",
        "model": {"path": str(root / "model"), "lora": {"r": 4, "alpha": 8, "target_modules": "all-linear"}},
        "data": [str(root / "pool.jsonl")],
        "target": [str(root / "target.jsonl")],
        "out": str(root / "artifacts" / "less"),
        "render": {"cutoff_len": 64},
        "warmup": {
            "fraction": 0.25,
            "training": {"num_train_epochs": 2, "learning_rate": 1e-3, "global_batch_size": 8, "logging_steps": 1},
        },
        "gradient": {"dim": 64, "part_rows": 16},
    }
    return {**config, **changes}


def make_all(root: Path, *, num: int = 60) -> Path:
    """Model, pool of two kinds and target of one, under `root`."""
    make_model(root / "model")
    write_jsonl(root / "pool.jsonl", records(num // 2, kind="count") + records(num - num // 2, kind="say"))
    write_jsonl(root / "target.jsonl", records(6, seed=1, kind="say"))
    write_jsonl(root / "heldout.jsonl", records(8, seed=2, kind="say"))
    return root


TEXT_DOMAINS = ("count", "say", "both")


def make_texts(root: Path, *, kind: str = "llama", **model: object) -> Path:
    """Model (config and tokenizer) and three domains of text of unequal size, under `root`."""
    make_model(root / "model", kind=kind, **model)
    rng = random.Random(0)
    numbers = [str(n) for n in range(20)]
    for domain, words, num in (("count", numbers, 60), ("say", WORDS, 50), ("both", numbers + WORDS, 40)):
        rows = [{"text": " ".join(rng.choices(words, k=rng.randint(10, 60)))} for _ in range(num)]
        write_jsonl(root / f"{domain}.jsonl", rows)
    return root


def mix_config(root: Path, **changes: object) -> dict[str, object]:
    """Settings of a mixer's score stage that takes seconds; files are expected under `root`."""
    config: dict[str, object] = {
        "method": "natural",
        "model": {"path": str(root / "model"), "random_weights": True, "dtype": "float32"},
        "data": [f"{name}={root / name}.jsonl" for name in TEXT_DOMAINS],
        "out": str(root / "artifacts" / "natural"),
        "pack": {"block_size": 16, "held_out": 0.3},
    }
    return {**config, **changes}


def mix_training(**changes: object) -> dict[str, object]:
    """Settings of a training of a few steps."""
    return {"max_steps": 8, "learning_rate": 1e-2, "global_batch_size": 8, "logging_steps": 2, **changes}
