"""Slow, obvious models of what ksmwalk does fast: written from the behaviour, sharing no code with the package.

Nothing here imports ksmwalk. A disagreement between the two is a bug in one of them.
"""
