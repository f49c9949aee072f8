"""Telling others what was decided: webhooks in the Standard Webhooks form, or as Slack reads them.

A decision's transaction puts a row into `delivery` for each webhook that asks for it; the herald
takes them from there, in the order of an experiment's decisions, and sends them until they arrive.
"""
