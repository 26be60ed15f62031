"""Deployment tools: specification and lock, control-plane calls, journalled steps, sweep, plan, terraform.

They are parts so far: the command ``medport deploy``, roll-out and verification are not there yet.
"""
