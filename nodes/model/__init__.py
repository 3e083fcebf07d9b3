"""The model engine: runs any part of a Llama-family model over batches of rows."""
