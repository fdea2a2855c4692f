"""What a GGUF file says about a base model, in the terms of Hugging Face: its config and its tokenizer."""
