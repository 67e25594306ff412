"""Text negatives."""
