"""Parts that several worlds share: car following, geometry, drawing, lane layout."""
