"""What Turnout is measured against. It runs in a virtual environment of its own (see
`requirements.lock`), so nothing here imports the project, but for `bench.peers` itself."""
