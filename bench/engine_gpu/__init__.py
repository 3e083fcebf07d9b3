"""`helix-mq bench engine --suite gpu`: the engine on a GPU, all of it, in one go."""
