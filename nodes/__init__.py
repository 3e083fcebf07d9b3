"""The GPU node: takes activation frames, runs its layers, forwards. The only home of torch."""
