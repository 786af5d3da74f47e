"""Write the mixture recipes' small models: `python pipelines/mixture/model.py --text .mix/text --out .mix`.

model/ is a Llama of 1.26M parameters, moe/ a Mixtral with 8 experts of which 2 work on a token, of the same size where it
counts, 2.9M parameters in all. Both have the same byte-level BPE of 4096 entries, and configurations only:
their weights are drawn when they are loaded (`model.random_weights`). The vocabulary comes from equally many bytes of each
domain, so no domain's proportion is built into it; documents that a recipe holds out are among them.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, MixtralConfig, PretrainedConfig, PreTrainedTokenizerFast

from dataflex_tools.core.errors import DataError

VOCAB, SHARE, LENGTH = 4096, 900_000, 1024  # entries; bytes of each domain that the vocabulary is made from; tokens
PAD, END = "<|pad|>", "<|endoftext|>"


def texts(folder: Path) -> Iterator[str]:
    """Documents of each domain of `folder`, evenly spread, to `SHARE` bytes. Raises DataError if there is no domain."""
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise DataError(f"{folder} has no .jsonl file; make the text first: python pipelines/mixture/text.py --out .mix")
    for file in files:
        found = [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]
        step, left = max(1, sum(len(text.encode()) for text in found) // SHARE), SHARE
        for text in found[::step]:
            yield text.encode()[:left].decode("utf-8", "ignore")
            left = max(0, left - len(text.encode()))


def train_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE of the domains in `folder`; every text can be encoded and decoded exactly."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=[PAD, END], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts(folder), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, model_max_length=LENGTH)


def configurations(tokenizer: PreTrainedTokenizerFast) -> dict[str, PretrainedConfig]:
    """The models by folder name."""
    shape = {
        "vocab_size": len(tokenizer), "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": LENGTH, "tie_word_embeddings": True, "bos_token_id": None,
        "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    return {
        "model": LlamaConfig(**shape, intermediate_size=352),
        "moe": MixtralConfig(**shape, intermediate_size=176, num_local_experts=8, num_experts_per_tok=2),
    }


def build(folder: Path, out: Path) -> None:
    """Write model/ and moe/ into `out`; tokenizer.json, the file that says a folder is complete, comes last."""
    tokenizer = train_tokenizer(folder)
    for name, config in configurations(tokenizer).items():
        config.architectures = [f"{type(config).__name__.removesuffix('Config')}ForCausalLM"]
        config.save_pretrained(out / name)
        tokenizer.save_pretrained(out / name)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="folder of <domain>.jsonl files")
    parser.add_argument("--out", type=Path, required=True, help="folder that model/ and moe/ are written to")
    args = parser.parse_args()
    try:
        build(args.text, args.out)
    except DataError as error:
        parser.exit(2, f"error: {error}\n")
    print(f"saved {args.out / 'model'} and {args.out / 'moe'}: {VOCAB} tokens, random weights")


if __name__ == "__main__":
    main()
