"""`python -m helix_mq` is `helix-mq`."""

from helix_mq.cli import main

main()
