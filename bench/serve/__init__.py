"""`helix-mq bench serve`: load on an OpenAI-compatible endpoint or by our SDK, and its figures."""
