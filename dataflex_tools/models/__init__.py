"""Models, tokenizers and LoRA adapters: with methods the only floor that knows transformers and peft."""
