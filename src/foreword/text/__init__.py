"""Example -> tokens, logits -> labels. There is no model in this room, only its tokenizer."""
