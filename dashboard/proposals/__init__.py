"""The pages of proposals: what waits for a second pair of eyes."""
