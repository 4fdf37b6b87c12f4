"""Write the generator of a run as a SavedModel."""
