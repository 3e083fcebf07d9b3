"""`helix-mq bench cluster`: an emulated heterogeneous cluster, live and beside the simulator."""
