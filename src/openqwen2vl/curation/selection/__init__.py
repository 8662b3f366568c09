"""Selection: which samples stay, by one expression a source over all that is known of them."""
