"""Images in files of their own: listed, decoded, packed into one file, copied to a node once."""
