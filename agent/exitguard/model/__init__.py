"""The vocabulary: the frozen records that the other packages hand to each other. Imports pydantic and the standard library only."""
