"""What only notebooks need: whether there is one, its pages, and a display that lives while a recipe runs."""
