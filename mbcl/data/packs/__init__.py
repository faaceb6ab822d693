"""Image files: listing, decoding, packing into one memory-mapped file, and a node-local cache."""
