"""Heterogeneous highway: five learning vehicles among fifty drivers of three temperaments."""
