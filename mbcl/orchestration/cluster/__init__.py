"""Ray as a cluster: starting or joining one, what it has, and how it loses and gains nodes."""
