"""`helix-mq bench engine`: our engine beside other programs that run the same model."""
