"""The demo: customer service, learned by a 135M-parameter model in minutes; and a long policy prompt."""
