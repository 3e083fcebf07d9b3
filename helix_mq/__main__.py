"""`python -m helix_mq` is `helix-mq`."""

from helix_mq.cli import main

# Processes that this one starts import this file again, and must not start anything.
if __name__ == "__main__":
    main()
