"""Speed: of updates and of search, two models side by side; the arithmetic that bounds it."""
