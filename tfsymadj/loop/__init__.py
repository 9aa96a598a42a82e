"""The one forward loop."""
