"""Pretrain the demo's small model on the Python standard library: `python pipelines/demo/pretrain.py --out DIR`.

A byte-level BPE tokenizer (4096 entries, ChatML template) and a 3M-parameter Llama, from random weights, in a few
minutes on two CPU cores. Documents are library source files; every third one is cut into short ChatML turns, so that
the special tokens are known to the model. Modules that the demo holds out are left out, and nothing but the standard
library is read, so the kind of item that the demo's target stands for is new to the model.
"""

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from items import is_held_out, library_files
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, get_cosine_schedule_with_warmup

# B batch, T tokens

VOCAB, TOKENS, BATCH = 4096, 256, 4  # batch 4 learns far faster per token than 8 or 16 (loss 5.4, 6.1, 6.2 at 246k)
STEPS = 1200  # 1.2M tokens; a step count, not a time limit, so that every machine trains the same model
LEARNING_RATE = 4e-3  # 8e-3 is worse (5.7 against 5.4 at 246k tokens)
PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def library_texts() -> list[tuple[str, str]]:
    """(module file, source text) of the standard library without the held-out modules, sorted."""
    named = [(name, path.read_bytes().decode("utf-8", "replace")) for name, path in library_files()]
    return [(name, text) for name, text in named if text.strip() and not is_held_out(name)]


def documents(texts: list[tuple[str, str]]) -> Iterator[str]:
    """Source files with an end token; every third one as ChatML turns of about 400 characters."""
    for i, (name, text) in enumerate(texts):
        if i % 3:
            yield f"{text}{END}\n"
            continue
        lines = text.splitlines(keepends=True)
        for start in range(0, len(lines), 10):
            first, rest = "".join(lines[start : start + 3]).strip(), "".join(lines[start + 3 : start + 10]).rstrip()
            if first and rest:
                yield f"{START}user\nContinue {name}.\n{first}{END}\n{START}assistant\n{rest}{END}\n"


def train_tokenizer(texts: list[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 4096 entries with a ChatML template; every text can be encoded and decoded exactly."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for _, text in texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, chat_template=CHATML, model_max_length=1024
    )


def blocks(texts: list[tuple[str, str]], tokenizer: PreTrainedTokenizerFast, count: int, seed: int) -> np.ndarray:
    """`count` blocks of the documents, drawn without replacement while they last, (count, TOKENS) int64."""
    encoded = tokenizer(list(documents(texts)), verbose=False)["input_ids"]
    flat = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in encoded])
    block_NT = flat[: len(flat) // TOKENS * TOKENS].reshape(-1, TOKENS)
    rng = np.random.default_rng(seed)
    epochs = [rng.permutation(len(block_NT)) for _ in range(math.ceil(count / len(block_NT)))]
    return block_NT[np.concatenate(epochs)[:count]]


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A 3M-parameter Llama with random weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=5,
            num_attention_heads=6,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def computes_bf16_fast() -> bool:
    """Whether this machine multiplies bfloat16 in hardware; elsewhere autocast would only cost precision."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    flags = Path("/proc/cpuinfo")
    return flags.is_file() and any(word in flags.read_text() for word in ("avx512_bf16", "amx_bf16"))


def pretrain(model: LlamaForCausalLM, block_NT: np.ndarray, *, learning_rate: float = LEARNING_RATE) -> float:
    """Train on the blocks in their order; returns the mean loss of the last tenth, nats per token."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    steps = len(block_NT) // BATCH
    schedule = get_cosine_schedule_with_warmup(optimizer, max(1, steps // 20), steps)
    losses, start = [], time.monotonic()
    for step in range(steps):
        batch_BT = torch.from_numpy(block_NT[step * BATCH : (step + 1) * BATCH]).to(device)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=computes_bf16_fast()):
            loss = model(input_ids=batch_BT, labels=batch_BT).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if (step + 1) % max(1, steps // 10) == 0:
            rate = (step + 1) * BATCH * TOKENS / (time.monotonic() - start)
            print(f"step {step + 1}/{steps}  loss {losses[-1]:.3f}  {rate:,.0f} tokens/s", flush=True)
    return float(np.mean(losses[-max(1, steps // 10) :]))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    texts = library_texts()
    tokenizer = train_tokenizer(texts)
    block_NT = blocks(texts, tokenizer, args.steps * BATCH, args.seed)
    model = new_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {block_NT.size:,} tokens", flush=True)
    loss = pretrain(model, block_NT)
    model.to("cpu").eval().save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    print(f"final loss {loss:.3f}; saved {args.out}")


if __name__ == "__main__":
    main()
