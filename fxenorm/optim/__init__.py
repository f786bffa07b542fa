"""How each optimizer's state follows its parameters."""
