"""Multi-process training: collectives, synchronised batch norm, and a launcher for one machine."""
