"""Networks: the parts that models and guides are made of. None of them knows a probability."""
