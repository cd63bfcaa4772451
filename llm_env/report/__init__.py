"""The report of a study: one HTML file that stands alone. It runs nothing but what its maps and its player show."""
