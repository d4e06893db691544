"""What KSM would bring and cost, from memory that was read: estimates made with the model."""
