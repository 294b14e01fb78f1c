"""The Shapes world: captioned pictures, a reader for them, and small models trained on them."""
