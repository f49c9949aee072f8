"""What all tests share."""

pytest_plugins = ["tests.servers", "tests.running", "tests.e2e.crash.figures"]
