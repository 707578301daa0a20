"""Steps by plain torch operations, written to be read beside the papers: the truth that the other backends are held to, and
what runs where these do not.
"""
