"""A search over the settings of one method: its trials learn side by side, and those that lose give up their place."""
