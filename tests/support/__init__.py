"""Servers for tests: a stand-in for Vertex AI, and one that fails in every way a server can."""
