"""Train SAEs of one's own, with the languages of their text as a setting."""
