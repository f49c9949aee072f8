"""How fast a router answers: over HTTP beside nginx and others, and within the process."""
