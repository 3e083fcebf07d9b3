"""The simulator: production scheduling and batching, or the published one's, on virtual time."""
