"""Several processes: collectives, batch norm over all of them, and starting them on one machine."""
