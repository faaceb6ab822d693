"""Multi-process training: collectives and synchronised batch norm."""
