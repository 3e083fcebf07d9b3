"""Model folders on disk: their configuration, tensors, tokenizer and conversion. No torch here."""
