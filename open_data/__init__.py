"""Open chest X-ray collections, converted to CXR trees."""
