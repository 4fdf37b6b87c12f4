"""Photos as arrays, and which of them are held out."""
