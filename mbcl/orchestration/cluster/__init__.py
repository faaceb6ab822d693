"""Ray as a cluster: connecting to it, its capacity, and the loss and gain of nodes."""
