"""Deployment tools: spec, lock, plan, apply, verify, roll back. They come with their own issue; nothing is here yet."""
