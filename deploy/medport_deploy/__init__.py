"""Deployment tools: spec, lock, plan, apply, verify, roll back. Nothing is here yet."""
