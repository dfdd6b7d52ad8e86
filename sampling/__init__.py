"""From requests to the images of a synthetic tree."""
