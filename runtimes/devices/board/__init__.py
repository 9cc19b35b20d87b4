"""Boards: other machines with Linux and Python, of which a transport brings the shell."""
