"""Proximal policy optimisation with independent (IPPO) or central (MAPPO) critics."""
