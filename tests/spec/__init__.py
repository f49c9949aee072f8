"""The published description of OFREP 0.3.0 (open-feature/protocol, Apache-2.0), as it came."""
