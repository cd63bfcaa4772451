"""The report of a study: one HTML file that stands alone. It runs nothing but the two runs that its player shows."""
