"""Tiny worlds with known answers: the ladder down which a failing algorithm is taken before its code is read."""
