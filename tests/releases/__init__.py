"""What each release left behind, so that the next ones can be held to it."""
