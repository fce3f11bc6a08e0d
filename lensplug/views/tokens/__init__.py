"""CircuitsVis: values and attention on the tokens of a prompt."""
