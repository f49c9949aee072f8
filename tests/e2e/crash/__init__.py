"""Turnout and its servers as processes that can be killed, and clients that keep count."""
