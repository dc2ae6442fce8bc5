"""The whole suite, as a caller and an operator meet it."""
