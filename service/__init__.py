"""The service: submit, watch, look, download.

Thin over `curator`: job directories are the truth, the database is an index over them.
"""
